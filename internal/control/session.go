package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// MaxRights is SCM_MAX_FD (linux/net/scm.h): the most descriptors one message
// may carry.
const MaxRights = 253

// session is one connection to the daemon, dialled by its first request. It
// never dials twice: what the daemon holds for the connection is gone with it,
// so a silent second connection would only hide that. Requests follow each
// other.
type session struct {
	path  string
	files []*os.File // not sent yet; owned by the caller

	conn    *sendConn // nil before the first request
	replies *bufio.Reader
	closed  bool
}

func newSession(path string, files []*os.File) *session {
	return &session{path: path, files: files}
}

func (s *session) close() {
	s.closed = true
	if s.conn != nil {
		_ = s.conn.Close() // what is to be known of it has been replied
	}
}

// dial connects, once.
func (s *session) dial(ctx context.Context) error {
	switch {
	case s.closed:
		return ErrConnectionLost
	case s.conn != nil:
		return nil
	case len(s.path) > maxSocketPath:
		return Errorf(CodeInvalid, "socket path %q has %d bytes, the kernel's limit is %d", s.path, len(s.path), maxSocketPath)
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", s.path)
	if err != nil {
		return err
	}
	uc := c.(*net.UnixConn)
	if err := checkServer(uc); err != nil {
		uc.Close()
		return err
	}
	s.conn = &sendConn{UnixConn: uc, files: s.files}
	s.files, s.replies = nil, bufio.NewReader(uc)
	return nil
}

// checkServer refuses to hand descriptors to a daemon of somebody else, who
// may have taken the path first.
func checkServer(uc *net.UnixConn) error {
	cred, err := PeerCred(uc)
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("served by uid %d, this is uid %d: %w", cred.Uid, os.Geteuid(), ErrForeign)
	}
	return nil
}

// explain turns a transport's error into one that says what to do.
func (s *session) explain(ctx context.Context, err error) error {
	var ce *Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("socket %s: %w", s.path, context.Cause(ctx))
	case errors.As(err, &ce):
		return ce
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("socket %s: %w; start it with \"usernet daemon --socket %s\" or set USERNET_SOCKET", s.path, ErrNotRunning, s.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("socket %s belongs to another user: %w; run as that user or set USERNET_SOCKET", s.path, err)
	case errors.Is(err, unix.ENOTSOCK), errors.Is(err, unix.EPROTOTYPE), errors.Is(err, errNotHTTP):
		return fmt.Errorf("socket %s: %w (%w); set USERNET_SOCKET or --socket to the daemon's socket", s.path, ErrForeign, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("socket %s: %w before it replied: %w", s.path, ErrConnectionLost, err)
	}
	return fmt.Errorf("socket %s: %w", s.path, err)
}

// sendConn sends its files with the first bytes that are written.
type sendConn struct {
	*net.UnixConn
	files []*os.File
}

// Write sends b, and with its first bytes the files, at most MaxRights per
// message.
func (c *sendConn) Write(b []byte) (int, error) {
	sent := 0
	for len(c.files) > 0 && len(b) > sent {
		batch := c.files[:min(len(c.files), MaxRights)]
		// One byte per message while more messages must follow: a stream
		// socket carries rights only on data.
		end := len(b)
		if len(c.files) > len(batch) {
			end = sent + 1
		}
		var n int
		err := withFDs(batch, nil, func(fds []int) (err error) {
			n, _, err = c.WriteMsgUnix(b[sent:end], unix.UnixRights(fds...), nil)
			return err
		})
		sent += n
		if err != nil {
			return sent, err
		}
		c.files = c.files[len(batch):]
	}
	if sent == len(b) {
		return sent, nil
	}
	n, err := c.UnixConn.Write(b[sent:])
	return sent + n, err
}

// withFDs calls fn with the files' descriptors while none of them can be
// closed. File.Fd would not do: it makes the open file description blocking,
// and the daemon shares that.
func withFDs(files []*os.File, fds []int, fn func([]int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("send descriptor %s: %w", files[0].Name(), err)
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) {
		ferr = withFDs(files[1:], append(fds, int(fd)), fn)
	}); err != nil {
		return fmt.Errorf("send descriptor %s: %w", files[0].Name(), err)
	}
	return ferr
}
