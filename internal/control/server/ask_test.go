package server

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

// connect makes a connection of its own, for requests that the client would
// never make.
func connect(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a request with files and returns the error of its reply; no code
// means a success.
func ask(t *testing.T, c *net.UnixConn, method, path, body string, header http.Header, files ...*os.File) *control.Error {
	t.Helper()
	req, err := http.NewRequest(method, "http://usernet"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for key, values := range header {
		req.Header[key] = values
	}
	var text bytes.Buffer
	if err := req.Write(&text); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(text.Bytes()[:1], rights, nil); err != nil {
		t.Fatal(err)
	}
	_, werr := c.Write(text.Bytes()[1:]) // cut off where the body is too long
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		t.Fatal(errors.Join(werr, err))
	}
	defer resp.Body.Close()
	var e control.ErrorReply
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		t.Fatalf("%s %s: %s: %v", method, path, resp.Status, err)
	}
	return &e.Error
}
