package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// demoPatience bounds every step of the demo. Nothing in it takes longer than
// a few milliseconds when it works.
const demoPatience = 5 * time.Second

// demoWeb is the program in the sandbox "web": it tells who asks. It says so
// once it listens, and ends when it is killed.
func demoWeb(out io.Writer) error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "listening")
	return http.Serve(l, whoAsks("web"))
}

// whoAsks answers every request with the client's address.
func whoAsks(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr) // net/http writes it so
		fmt.Fprintf(w, "this is %s, you are %s", name, host)
	})
}

// demoGet is the program "get FAMILY URL" in a sandbox: it prints the answer.
func demoGet(out io.Writer, args []string) error {
	if len(args) != 2 {
		return errors.New("get: want a family and a URL")
	}
	ctx, cancel := context.WithTimeout(context.Background(), demoPatience)
	defer cancel()
	body, err := httpGet(ctx, args[1], func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, args[0], addr)
	})
	if err != nil {
		return err
	}
	fmt.Fprint(out, body)
	return nil
}

// httpGet fetches a URL over connections that dial makes.
func httpGet(ctx context.Context, url string, dial func(ctx context.Context, addr string) (net.Conn, error)) (string, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// demoKnock is the program "knock ADDRESS" in a sandbox: it prints what becomes
// of a connection.
func demoKnock(out io.Writer, args []string) error {
	if len(args) != 1 {
		return errors.New("knock: want an address")
	}
	c, err := net.DialTimeout("tcp", args[0], demoPatience)
	switch {
	case err == nil:
		c.Close()
		fmt.Fprint(out, "open")
	case errors.Is(err, syscall.ECONNREFUSED):
		fmt.Fprint(out, "refused")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES): // ICMP: prohibited
		fmt.Fprint(out, "prohibited")
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Fprint(out, "no answer")
	default:
		fmt.Fprint(out, err)
	}
	return nil
}
