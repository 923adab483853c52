package daemon

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

// redirect is the nf_tables socket that owns the rules by which host ports lead
// to the sockets of some publications: the kernel removes the rules when it is
// closed, be it here or with this process. Nothing else can be done with it
// without CAP_NET_ADMIN. A nil redirect is none.
type redirect struct {
	file *os.File
	uses atomic.Int32
}

// splitRedirect takes the nf_tables socket off the end of the descriptors that
// came with some publications. The caller releases what it gets.
func splitRedirect(files []*os.File, specs ...control.PublicationSpec) (sockets []*os.File, r *redirect, err error) {
	for _, s := range specs {
		if !s.Redirect {
			continue
		}
		last := len(files) - 1
		if err := checkRedirect(files[last]); err != nil {
			return nil, nil, control.Errorf(control.CodeDescriptor, "redirect of host port %d/%s: %v", s.HostPort, s.Proto, err)
		}
		r = &redirect{file: files[last]}
		files[last] = nil // it owns it
		r.uses.Store(1)
		return files[:last], r, nil
	}
	return files, nil, nil
}

// share adds a user and returns how that one lets go.
func (r *redirect) share() (release func()) {
	r.uses.Add(1)
	return r.release
}

// release closes the socket after its last user.
func (r *redirect) release() {
	if r != nil && r.uses.Add(-1) == 0 {
		_ = r.file.Close() // a descriptor is gone whatever close says
	}
}

// checkRedirect holds a descriptor against what it should be: anything else
// would be kept open for nothing.
func checkRedirect(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		var domain, proto int
		if domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			err = fmt.Errorf("the descriptor is no socket: %w", err)
			return
		}
		if proto, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil {
			return
		}
		if domain != unix.AF_NETLINK || proto != unix.NETLINK_NETFILTER {
			err = fmt.Errorf("the socket is of family %d and protocol %d, want one of nf_tables", domain, proto)
		}
	})
	return errors.Join(cerr, err)
}
