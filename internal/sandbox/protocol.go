package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
)

// childMessage is what the child says: exactly one field is set.
type childMessage struct {
	// Device announces the TUN, whose descriptor comes with this message, and
	// says which namespaces it is in.
	Device *namespaces `json:"device,omitempty"`
	// Ready says that only execve is left to do.
	Ready *readyMessage `json:"ready,omitempty"`
	// Fault ends the set-up.
	Fault *childFault `json:"fault,omitempty"`
}

type readyMessage struct {
	Warnings []string `json:"warnings,omitempty"`
}

// childFault is an error on its way to the parent.
type childFault struct {
	Step  string        `json:"step"`
	Text  string        `json:"text"`
	Errno syscall.Errno `json:"errno,omitempty"`
}

// parentMessage is what the parent says: first Settings, then Go.
type parentMessage struct {
	Settings *childSettings `json:"settings,omitempty"`
	Go       bool           `json:"go,omitempty"`
}

// childSettings is all that the child needs beside its own environment.
type childSettings struct {
	Interface netns.Interface   `json:"interface"`
	Files     map[string][]byte `json:"files"` // path to contents, see mountFiles
	Path      string            `json:"path"`
	Args      []string          `json:"args"`
	OwnUserns bool              `json:"ownUserns"` // privileges come from a user namespace of the child's
	Bounding  []uintptr         `json:"bounding"`  // capabilities that the caller could have got
}

// remoteError is an error of the child's: its text, and the errno behind it for
// errors.Is.
type remoteError struct {
	text  string
	errno syscall.Errno
}

func (e *remoteError) Error() string { return e.text }

func (e *remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

func newFault(step string, err error) *childFault {
	f := &childFault{Step: step, Text: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = errno
	}
	return f
}

// pipe is one end of the socket pair between parent and child.
type pipe struct {
	conn *net.UnixConn
	dec  *json.Decoder
	file *os.File // the descriptor that came with the last read, if any
}

func newPipe(conn *net.UnixConn) *pipe {
	p := &pipe{conn: conn}
	p.dec = json.NewDecoder(p)
	return p
}

// Read implements io.Reader for the decoder and keeps a descriptor that comes
// along.
func (p *pipe) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := p.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, err
	}
	if oobn > 0 {
		if err := p.keepFile(oob[:oobn]); err != nil {
			return 0, err
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (p *pipe) keepFile(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("read passed descriptor: %w", err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fmt.Errorf("read passed descriptor: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if p.file != nil {
				p.file.Close()
			}
			p.file = os.NewFile(uintptr(fd), "/dev/net/tun")
		}
	}
	return nil
}

func (p *pipe) receive(into any) error { return p.dec.Decode(into) }

// send writes one message; file, if not nil, goes along with its first byte.
func (p *pipe) send(message any, file *os.File) error {
	b, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if file != nil {
		raw, err := file.SyscallConn()
		if err != nil {
			return fmt.Errorf("send descriptor: %w", err)
		}
		var sendErr error
		err = raw.Control(func(fd uintptr) {
			_, _, sendErr = p.conn.WriteMsgUnix(b[:1], unix.UnixRights(int(fd)), nil)
		})
		if err := errors.Join(err, sendErr); err != nil {
			return fmt.Errorf("send descriptor: %w", err)
		}
		b = b[1:]
	}
	if _, err := p.conn.Write(b); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

func (p *pipe) close() {
	p.conn.Close()
	if p.file != nil {
		p.file.Close()
		p.file = nil
	}
}

// pipePair makes both ends: the parent's, and the file that the child inherits.
func pipePair() (*pipe, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "sandbox"), os.NewFile(uintptr(fds[1]), "sandbox")
	p, err := pipeOf(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return p, theirs, nil
}

// pipeOf takes f over, on errors too.
func pipeOf(f *os.File) (*pipe, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket between parent and child: %w", err)
	}
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("socket between parent and child is a %T", conn)
	}
	return newPipe(uc), nil
}

// watch makes everything that waits on the pipe give up when ctx ends, until
// stop is called.
func (p *pipe) watch(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = p.conn.SetDeadline(time.Unix(1, 0)) // fails when it is closed: then nobody waits
	})
}
