package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/undo"
)

// start is the parent's side of the set-up.
type start struct {
	p         *Process
	ownUserns bool
	pipe      *pipe
	theirs    *os.File
	unwatch   func() bool
	undo      undo.List
}

// parentSteps are the parent's steps in order.
var parentSteps = []struct {
	name string
	do   func(*start, context.Context) error
}{
	{"open the socket to the set-up process", (*start).openPipe},
	{"start the set-up process", (*start).startChild},
	{"start the reaper", (*start).startReaper},
	{"receive the TUN device", (*start).receiveDevice},
	{"attach to the network", (*start).attach},
	{"send the settings", (*start).sendSettings},
	{"configure the sandbox", (*start).awaitReady},
	{"commit the link", (*start).commit},
	{"execute the command", (*start).execute},
}

func (s *start) run(ctx context.Context) error {
	for _, step := range parentSteps {
		err := s.p.cfg.fault(step.name)
		if err == nil {
			err = step.do(s, ctx)
		}
		if err != nil {
			return s.explain(ctx, step.name, err)
		}
	}
	return nil
}

// explain makes the error of a step what Start promises.
func (s *start) explain(ctx context.Context, step string, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var path *os.PathError
	if errors.As(err, &path) && path.Op == "exec" {
		return path
	}
	var setup *SetupError
	if !errors.As(err, &setup) {
		setup = &SetupError{Step: step, Err: err}
	}
	if setup.Hint == "" {
		setup.Hint = hint(setup.Step, setup.Err, s.ownUserns)
	}
	return setup
}

func (s *start) openPipe(context.Context) (err error) {
	s.pipe, s.theirs, err = pipePair()
	if err != nil {
		return err
	}
	s.undo.Add(func() { s.pipe.close(); s.theirs.Close() })
	return nil
}

// startChild runs cmd with the set-up in the command's place, and gives cmd its
// fields back.
func (s *start) startChild(ctx context.Context) error {
	cmd := s.p.cmd
	attr, err := childAttr(cmd.SysProcAttr, s.ownUserns)
	if err != nil {
		return err
	}
	path, args, files, sys := cmd.Path, cmd.Args, cmd.ExtraFiles, cmd.SysProcAttr
	fd := 3 + len(files)
	cmd.Path = "/proc/self/exe"
	cmd.Args = []string{childArg0, strconv.Itoa(fd), s.p.cfg.IfName}
	if s.p.cfg.failChild != "" {
		cmd.Args = append(cmd.Args, s.p.cfg.failChild)
	}
	cmd.ExtraFiles = append(slices.Clone(files), s.theirs)
	cmd.SysProcAttr = attr
	started := make(chan error, 1)
	go s.p.spawn(started)
	err = <-started
	cmd.Path, cmd.Args, cmd.ExtraFiles, cmd.SysProcAttr = path, args, files, sys
	if err != nil {
		return err
	}
	s.undo.Add(s.killChild)
	s.theirs.Close() // so that the child's end is the only one, and its death seen
	s.unwatch = s.pipe.watch(ctx)
	return nil
}

// killChild ends the set-up process and waits for it.
func (s *start) killChild() {
	s.p.cmd.Process.Kill()
	if s.p.cmd.WaitDelay == 0 {
		// The command never ran: what it was to read is not waited for.
		s.p.cmd.WaitDelay = time.Millisecond
	}
	s.p.cmd.Wait()
	close(s.p.over)
}

// childAttr adds to the caller's wishes what makes the child a sandbox.
func childAttr(wish *syscall.SysProcAttr, ownUserns bool) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{}
	if wish != nil {
		*attr = *wish
	}
	switch {
	case attr.Chroot != "":
		return nil, errors.New("SysProcAttr.Chroot is set, and the set-up needs the machine's root directory")
	case attr.Credential != nil:
		return nil, errors.New("SysProcAttr.Credential is set, and a sandbox runs as its caller")
	case attr.Cloneflags != 0, attr.Unshareflags != 0, attr.UidMappings != nil, attr.GidMappings != nil, attr.AmbientCaps != nil:
		return nil, errors.New("SysProcAttr asks for namespaces or capabilities, which the sandbox chooses itself")
	}
	if attr.Pdeathsig == 0 {
		attr.Pdeathsig = unix.SIGKILL
	}
	attr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWNS
	if ownUserns {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		attr.AmbientCaps = setupCaps
	}
	return attr, nil
}

// receive reads the child's next message; a fault becomes an error.
func (s *start) receive() (childMessage, error) {
	var m childMessage
	err := s.pipe.receive(&m)
	switch {
	case errors.Is(err, io.EOF):
		return m, errors.New("the set-up process ended without a word (killed?)")
	case err != nil:
		return m, fmt.Errorf("hear from the set-up process: %w", err)
	case m.Fault != nil:
		return m, faultError(m.Fault)
	}
	return m, nil
}

func faultError(f *childFault) error {
	return &SetupError{Step: f.Step, Err: &remoteError{text: f.Text, errno: f.Errno}}
}

func (s *start) receiveDevice(context.Context) error {
	m, err := s.receive()
	if err != nil {
		return err
	}
	if m.Device == nil || s.pipe.file == nil {
		return errors.New("the set-up process sent no descriptor")
	}
	s.p.ns = *m.Device
	return s.p.reaper.guard(s.p.ns)
}

func (s *start) attach(ctx context.Context) error {
	p := s.p
	link, err := p.cfg.Network.Attach(ctx, s.pipe.file, LinkSpec{
		Name: p.cfg.Name, Publish: p.cfg.Publish, Netns: p.ns.Net, IfName: p.cfg.IfName,
	})
	if err != nil {
		return err
	}
	s.pipe.file = nil // the network's now
	p.link, p.settings = link, link.Settings()
	s.undo.Add(func() { _ = p.detach() }) // the error that led here matters more
	if p.cfg.Attached != nil {
		return p.cfg.Attached(p.settings)
	}
	return nil
}

// sendSettings gives the child all that it needs.
func (s *start) sendSettings(context.Context) error {
	p := s.p
	files, err := nameFiles(p.settings, p.cfg)
	if err != nil {
		return err
	}
	settings := &childSettings{
		Interface: interfaceOf(p.settings, p.cfg.IfName),
		Files:     files,
		Path:      p.cmd.Path,
		Args:      p.cmd.Args,
		OwnUserns: s.ownUserns,
		Bounding:  boundingCaps(),
	}
	if len(settings.Args) == 0 {
		settings.Args = []string{p.cmd.Path}
	}
	// execve is called in Dir, where exec.Cmd has looked Path up already.
	if p.cmd.Dir == "" && !filepath.IsAbs(settings.Path) {
		if settings.Path, err = filepath.Abs(settings.Path); err != nil {
			return err
		}
	}
	return s.send(parentMessage{Settings: settings})
}

// send tells the child something. A child that is gone has said why.
func (s *start) send(m parentMessage) error {
	err := s.pipe.send(m, nil)
	if errors.Is(err, unix.EPIPE) {
		if _, fault := s.receive(); fault != nil {
			return fault
		}
	}
	return err
}

// awaitReady waits until the child has done everything but execve.
func (s *start) awaitReady(context.Context) error {
	m, err := s.receive()
	if err != nil {
		return err
	}
	if m.Ready == nil {
		return errors.New("the set-up process did not get ready")
	}
	s.p.warnings = m.Ready.Warnings
	return nil
}

// startReaper lets nothing of the sandbox outlive this process, however it ends.
// It is done while the set-up process starts, when this one would wait.
func (s *start) startReaper(context.Context) (err error) {
	if s.p.reaper, err = startReaper(); err != nil {
		return err
	}
	s.undo.Add(s.p.reaper.dismiss)
	return nil
}

// interfaceOf is what the sandbox's interface looks like. The device joins no
// Ethernet, so a default route needs no resolved next hop; naming the gateway
// lets tools that look for one find it.
func interfaceOf(s Settings, name string) netns.Interface {
	i := netns.Interface{Name: name, Addrs: s.Addrs, MTU: s.MTU, Unpaced: true}
	for _, g := range s.Gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if g.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		i.Routes = append(i.Routes, netns.Route{Dst: all, Gateway: g})
	}
	return i
}

func (s *start) commit(ctx context.Context) error { return s.p.link.Commit(ctx) }

// execute lets the child go on. Its end of the socket closes when execve
// succeeds, and the parent's has nothing more to do then. From here on ctx has
// no say: the command may be running already, and a signal is its own.
func (s *start) execute(ctx context.Context) error {
	if !s.unwatch() {
		return context.Cause(ctx)
	}
	if err := s.send(parentMessage{Go: true}); err != nil {
		return err
	}
	var m childMessage
	err := s.pipe.receive(&m)
	switch {
	case errors.Is(err, io.EOF):
		s.pipe.close()
		return nil
	case err != nil:
		return fmt.Errorf("hear from the set-up process: %w", err)
	case m.Fault != nil:
		return s.execError(m.Fault)
	}
	return errors.New("the set-up process said something else than that it executes the command")
}

// execError names the command, whose path the child's error need not hold.
func (s *start) execError(f *childFault) error {
	if f.Step != "execute" || f.Errno == 0 {
		return faultError(f)
	}
	return &os.PathError{Op: "exec", Path: s.p.cmd.Path, Err: f.Errno}
}
