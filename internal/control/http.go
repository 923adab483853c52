package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// The client's side of HTTP, of which it needs little: net/http would make each
// start of the plugin half a millisecond longer, and runtimes start it for every
// verb of every plugin of a list. HTTP/1.0 with "Connection: keep-alive" (RFC 9112
// appendix C.2.2) has the server answer with a length, or else close the connection
// behind the body: nothing comes in chunks.

// errNotHTTP means that the reply is none.
var errNotHTTP = errors.New("malformed HTTP reply")

// maxErrorReply bounds what is read of a reply that is no success.
const maxErrorReply = 1 << 20

// call is one request whose reply is JSON; reply may be nil.
func (s *session) call(ctx context.Context, method, path string, body, reply any) error {
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encode request for %s %s: %w", method, path, err)
		}
	}
	r, done, err := s.do(ctx, method, path, raw)
	if err != nil {
		return err
	}
	defer done()
	b, err := io.ReadAll(r)
	if err != nil {
		return s.explain(ctx, fmt.Errorf("read reply of %s %s: %w", method, path, err))
	}
	if reply == nil {
		return nil
	}
	// Unknown fields are accepted here: an older client may talk to a newer
	// daemon of the same major version.
	if err := json.Unmarshal(b, reply); err != nil {
		return fmt.Errorf("decode reply of %s %s: %w", method, path, err)
	}
	return nil
}

// do sends one request and returns the body of the reply when that is a success,
// and a function to call when it has been read. ctx interrupts both; the
// connection is then of no more use.
func (s *session) do(ctx context.Context, method, path string, body []byte) (io.Reader, func(), error) {
	if err := s.dial(ctx); err != nil {
		return nil, nil, s.explain(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) }) // fails only when closed
	done := func() { stop() }
	_, werr := s.conn.Write(append(head(method, path, len(body)), body...))
	// A daemon that refuses the request may have answered before it was read.
	status, header, err := s.readHead()
	if err == nil {
		var r io.Reader
		if r, err = s.readBody(status, header); err == nil {
			return r, done, nil
		}
	}
	done()
	var refused *Error
	if werr != nil && !errors.As(err, &refused) {
		err = werr
	}
	return nil, nil, s.explain(ctx, err)
}

// head is the request up to its body.
func head(method, path string, length int) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.0\r\nHost: usernet\r\nConnection: keep-alive\r\n%s: %d\r\n", method, path, VersionHeader, APIVersion)
	if length > 0 {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", length)
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// readHead reads the reply up to its body.
func (s *session) readHead() (status int, header textproto.MIMEHeader, err error) {
	r := textproto.NewReader(s.replies)
	line, err := r.ReadLine()
	if err != nil {
		return 0, nil, err
	}
	proto, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	if status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(proto, "HTTP/1.") {
		return 0, nil, fmt.Errorf("%w: %.40q", errNotHTTP, line)
	}
	if header, err = r.ReadMIMEHeader(); err != nil {
		return 0, nil, err
	}
	return status, header, nil
}

// readBody returns the body of a success. Other replies, those of another
// version, and those that are not usernet's are errors.
func (s *session) readBody(status int, header textproto.MIMEHeader) (io.Reader, error) {
	switch v := header.Get(VersionHeader); v {
	case "":
		return nil, fmt.Errorf("an HTTP server without the %s header answers: %w; set USERNET_SOCKET or --socket to the daemon's socket", VersionHeader, ErrForeign)
	case strconv.Itoa(APIVersion):
	default:
		return nil, Errorf(CodeVersion, "socket %s: the daemon speaks API version %s, this program %d; install the same release of both and restart the daemon", s.path, v, APIVersion)
	}
	var r io.Reader = s.replies
	if text := header.Get("Content-Length"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%w: Content-Length %.20q", errNotHTTP, text)
		}
		r = &exactReader{s.replies, n}
	} else if status == 204 { // No Content
		r = strings.NewReader("")
	}
	if status < 300 {
		return r, nil
	}
	b, err := io.ReadAll(io.LimitReader(r, maxErrorReply))
	if err != nil {
		return nil, fmt.Errorf("read error reply %d: %w", status, err)
	}
	var e ErrorReply
	if json.Unmarshal(b, &e) != nil || e.Error.Code == "" {
		return nil, Errorf(CodeInternal, "daemon answered %d: %.200q", status, b)
	}
	return nil, &e.Error
}

// exactReader reads n bytes; fewer are io.ErrUnexpectedEOF.
type exactReader struct {
	r io.Reader
	n int64
}

func (e *exactReader) Read(b []byte) (int, error) {
	if e.n == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(b[:min(int64(len(b)), e.n)])
	e.n -= int64(n)
	if err == io.EOF && e.n > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
