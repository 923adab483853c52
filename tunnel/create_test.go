package tunnel_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

// createIn makes a TUN in ns; the file is closed at the test's end.
func createIn(t *testing.T, ns *netns.Handle, o tunnel.Options) *os.File {
	t.Helper()
	var f *os.File
	nstest.In(t, ns, func() (err error) {
		f, err = tunnel.Create(o)
		return err
	})
	t.Cleanup(func() { f.Close() })
	return f
}

// interfaces returns the names of the interfaces of ns but lo.
func interfaces(t *testing.T, ns *netns.Handle) map[string]net.Interface {
	t.Helper()
	all := make(map[string]net.Interface)
	nstest.In(t, ns, func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			if i.Name != "lo" {
				all[i.Name] = i
			}
		}
		return err
	})
	return all
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// awaitFiles waits until as many descriptors are open as were before: the last
// one of a device is closed in the background.
func awaitFiles(t *testing.T, before int) {
	t.Helper()
	nstest.WaitFor(t, 5*time.Second, func() bool { return openFiles(t) == before })
}

func TestNetnsCreateMakesADeviceThatIsReadyToOpen(t *testing.T) {
	ns := nstest.NewNS(t)
	f := createIn(t, ns, tunnel.Options{})
	if err := tunnel.Validate(f); err != nil {
		t.Error(err)
	}
	name, err := tunnel.Name(f)
	if err != nil || name != "un0" {
		t.Errorf("Name = %q, %v, want un0", name, err)
	}
	i, ok := interfaces(t, ns)["un0"]
	if !ok || i.MTU != tunnel.DefaultMTU || i.Flags&net.FlagUp != 0 {
		t.Errorf("interface = %+v, want un0 down with MTU %d", i, tunnel.DefaultMTU)
	}
	second := createIn(t, ns, tunnel.Options{MTU: 65520})
	if name, err := tunnel.Name(second); err != nil || name != "un1" {
		t.Errorf("second Name = %q, %v, want un1", name, err)
	}
	if mtu := interfaces(t, ns)["un1"].MTU; mtu != 65520 {
		t.Errorf("MTU = %d, want 65520", mtu)
	}
	offloads := nstest.Exec(t, ns, "ip", "-details", "link", "show", "un0")
	if !strings.Contains(offloads, "vnet_hdr on") || !strings.Contains(offloads, "qlen 2000") {
		t.Errorf("un0 has no virtio headers or no queue of 2000:\n%s", offloads)
	}
	// The only descriptor: the device goes with it.
	f.Close()
	if _, ok := interfaces(t, ns)["un0"]; ok {
		t.Error("un0 is still there after its file was closed")
	}
}

func TestNetnsCreateRefusesWithoutLeak(t *testing.T) {
	ns := nstest.NewNS(t)
	createIn(t, ns, tunnel.Options{Name: "taken"})
	createIn(t, ns, tunnel.Options{Name: "kept", Persist: true}).Close()
	before := openFiles(t)
	for name, test := range map[string]struct {
		options tunnel.Options
		want    error
		says    string
	}{
		"without owner": {tunnel.Options{Name: "kept"}, fs.ErrExist, `create TUN "kept": TUNSETIFF: an interface of this name exists already`},
		"name taken":    {tunnel.Options{Name: "taken"}, fs.ErrExist, `create TUN "taken": TUNSETIFF: an interface of this name exists already`},
		"name too long": {tunnel.Options{Name: "sixteen-letters!"}, unix.EINVAL, "longer than 15 bytes"},
		"bad name":      {tunnel.Options{Name: "a/b"}, unix.EINVAL, `create TUN "a/b": TUNSETIFF`},
		"long alias":    {tunnel.Options{Name: "noted", Alias: strings.Repeat("x", 256)}, unix.ERANGE, `alias "xxx`},
		"bad MTU":       {tunnel.Options{Name: "small", MTU: 20}, unix.EINVAL, "set MTU 20, queue length 2000 on small"},
	} {
		err := ns.Do(func() error {
			f, err := tunnel.Create(test.options)
			if f != nil {
				t.Errorf("%s: Create returned a file", name)
			}
			return err
		})
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: Create = %v, want %v and %q", name, err, test.want, test.says)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors open after refusals, %d before", after, before)
	}
	if all := interfaces(t, ns); len(all) != 2 {
		t.Errorf("interfaces after refusals: %v, want taken and kept", all)
	}
}

func TestValidateNamesWhatADescriptorIs(t *testing.T) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	regular, err := os.Create(t.TempDir() + "/regular")
	if err != nil {
		t.Fatal(err)
	}
	defer regular.Close()
	directory, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	defer reader.Close()
	for says, f := range map[string]*os.File{
		"it is a socket (socket:[":             socket,
		"a regular file (" + regular.Name():    regular,
		"a directory (" + directory.Name():     directory,
		"character device 1:3 (/dev/null)":     null,
		"a pipe (pipe:[":                       reader,
		"want /dev/net/tun attached with IFF_": null,
	} {
		err := tunnel.Validate(f)
		var descriptor *tunnel.DescriptorError
		if !errors.As(err, &descriptor) || !strings.Contains(err.Error(), says) {
			t.Errorf("Validate(%s) = %v, want it to say %q", f.Name(), err, says)
		}
		if _, err := tunnel.Open(f, 0); !errors.As(err, &descriptor) {
			t.Errorf("Open(%s) = %v, want a DescriptorError", f.Name(), err)
		}
		if _, err := f.Stat(); err != nil {
			t.Errorf("a refused Open closed its caller's file: %v", err)
		}
	}
	null.Close()
	if err := tunnel.Validate(null); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Validate(closed file) = %v, want os.ErrClosed", err)
	}
}

func TestNetnsValidateNamesOtherKindsOfTUN(t *testing.T) {
	ns := nstest.NewNS(t)
	for says, flags := range map[string]uint16{
		"attached to no interface":                        0,
		"a TAP device (dev0, flags":                       unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR,
		"a TUN device without virtio headers (dev0, flag": unix.IFF_TUN | unix.IFF_NO_PI,
	} {
		f := rawTUN(t, ns, flags)
		err := tunnel.Validate(f)
		var descriptor *tunnel.DescriptorError
		if !errors.As(err, &descriptor) || !strings.Contains(err.Error(), says) {
			t.Errorf("Validate = %v, want it to say %q", err, says)
		}
		f.Close()
	}
	f := rawTUN(t, ns, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	if err := tunnel.Validate(f); err != nil {
		t.Errorf("Validate of a right one: %v", err)
	}
	ioctl(t, f, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 12) })
	if err := tunnel.Validate(f); err == nil || !strings.Contains(err.Error(), "virtio headers of 12 bytes, not 10") {
		t.Errorf("Validate with 12-byte headers = %v", err)
	}
}

// TestNetnsKernelHidesPacketInformation holds what Validate says of devices
// with packet information headers, and that their frames are refused.
func TestNetnsKernelHidesPacketInformation(t *testing.T) {
	ns := nstest.NewNS(t)
	dev, err := tunnel.Open(rawTUN(t, ns, unix.IFF_TUN|unix.IFF_VNET_HDR), 0)
	if err != nil {
		t.Fatalf("the kernel tells devices with packet information now, so Validate's comment is out of date: %v", err)
	}
	defer dev.Close()
	nstest.In(t, ns, func() error { return netns.Configure(netns.Interface{Name: "dev0"}) })
	peer := newPacketSocket(t, ns, "dev0")
	for _, v6 := range []bool{false, true} {
		if err := peer.WriteFrame([][]byte{tunneltest.FrameSpec{IPv6: v6}.Frame()}); err != nil {
			t.Fatal(err)
		}
		if packets, err := tunneltest.Packets(readWithin(t, dev, 10*time.Second)); err == nil {
			t.Errorf("a frame with packet information was taken for % x", packets)
		}
	}
}

// rawTUN opens /dev/net/tun, in blocking mode as other programs do, and unless
// flags is 0 attaches it to an interface dev0 in ns.
func rawTUN(t *testing.T, ns *netns.Handle, flags uint16) *os.File {
	t.Helper()
	fd := -1
	// A TUN belongs to the namespace in which its descriptor was opened, not
	// to the one in which TUNSETIFF is called.
	nstest.In(t, ns, func() (err error) {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	t.Cleanup(func() { f.Close() })
	if flags == 0 {
		return f
	}
	ifr, err := unix.NewIfreq("dev0")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	return f
}

func ioctl(t *testing.T, f *os.File, fn func(fd int) error) {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var result error
	err = conn.Control(func(fd uintptr) { result = fn(int(fd)) })
	if err := errors.Join(err, result); err != nil {
		t.Fatal(err)
	}
}

// TestNetnsOpenTakesAnyKindOfFile: a descriptor may come non-blocking or
// blocking, known to the poller or not, once or as a duplicate.
func TestNetnsOpenTakesAnyKindOfFile(t *testing.T) {
	const flags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	for name, prepare := range map[string]func(*os.File) *os.File{
		"blocking":     func(f *os.File) *os.File { return f },
		"non-blocking": func(f *os.File) *os.File { return wrapAgain(t, f, true) },
		"polled":       func(f *os.File) *os.File { return polled(t, f) },
		"duplicate of a polled one": func(f *os.File) *os.File {
			g := polled(t, f)
			t.Cleanup(func() { g.Close() })
			return wrapAgain(t, g, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := nstest.NewNS(t)
			f := prepare(rawTUN(t, ns, flags))
			dev, err := tunnel.Open(f, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			nstest.In(t, ns, func() error { return netns.Configure(netns.Interface{Name: "dev0"}) })
			peer := newPacketSocket(t, ns, "dev0")
			// The read waits, in the poller, for a frame that comes later.
			frame := tunneltest.FrameSpec{Payload: []byte("hello")}.Frame()
			sent := make(chan error, 1)
			time.AfterFunc(50*time.Millisecond, func() { sent <- peer.WriteFrame([][]byte{frame}) })
			got := readWithin(t, dev, 10*time.Second)
			if string(got[tunnel.HeaderLen:]) != string(frame[tunnel.HeaderLen:]) {
				t.Errorf("read % x, want % x", got, frame)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			// And one that waits for ever is ended by Close.
			ended := make(chan error, 1)
			go func() {
				_, err := tunneltest.ReadFrame(dev)
				ended <- err
			}()
			nstest.WaitFor(t, 10*time.Second, waitsInPoller)
			dev.Close()
			select {
			case err := <-ended:
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("ReadFrame ended by Close = %v, want os.ErrClosed", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("ReadFrame goes on 10 s after Close")
			}
		})
	}
}

// waitsInPoller reports whether a goroutine waits for a frame, and not in a
// system call, from which Close could not fetch it.
func waitsInPoller() bool {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(g, " [IO wait") && strings.Contains(g, "(*fileDevice).ReadFrame(") {
			return true
		}
	}
	return false
}

// polled returns f's descriptor as a file of Go's poller.
func polled(t *testing.T, f *os.File) *os.File {
	t.Helper()
	var dup int
	ioctl(t, f, func(fd int) (err error) {
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	f.Close()
	g := os.NewFile(uintptr(dup), "polled")
	if err := g.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	return g
}

// wrapAgain makes a second file of f's very descriptor.
func wrapAgain(t *testing.T, f *os.File, nonblock bool) *os.File {
	t.Helper()
	number := -1
	ioctl(t, f, func(fd int) error {
		number = fd
		return unix.SetNonblock(fd, nonblock)
	})
	dup, err := syscall.Dup(number)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(dup)
	return os.NewFile(uintptr(dup), "again")
}

func TestNetnsOpenOwnsTheFileOnSuccess(t *testing.T) {
	ns := nstest.NewNS(t)
	before := openFiles(t)
	f := rawTUN(t, ns, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	if _, err := tunnel.Open(f, -1); err == nil || !strings.Contains(err.Error(), "MTU -1") {
		t.Errorf("Open with MTU -1 = %v", err)
	}
	dev, err := tunnel.Open(f, 1400)
	if err != nil {
		t.Fatal(err)
	}
	if dev.MTU() != 1400 {
		t.Errorf("MTU() = %d, want 1400", dev.MTU())
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	awaitFiles(t, before)
	if _, err := f.Read(nil); !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.EOF) {
		t.Errorf("the file is still open after the device's Close: %v", err)
	}
}

// TestNetnsPersistentDeviceEndsWithItsNamespace holds what Options.Persist
// promises, and that without it a device ends with its descriptor.
func TestNetnsPersistentDeviceEndsWithItsNamespace(t *testing.T) {
	ns := nstest.NewNS(t)
	f := createIn(t, ns, tunnel.Options{Name: "stays", Persist: true})
	createIn(t, ns, tunnel.Options{Name: "goes"}).Close()
	nstest.Exec(t, ns, "ip", "link", "set", "stays", "up")
	if got := nstest.Exec(t, ns, "ip", "-br", "link", "show", "stays"); strings.Contains(got, "NO-CARRIER") {
		t.Errorf("with a descriptor the device is %q", got)
	}
	begin := time.Now()
	f.Close()
	t.Logf("closing took %v", time.Since(begin))
	if got := nstest.Exec(t, ns, "ip", "-br", "link", "show", "stays"); !strings.Contains(got, "NO-CARRIER") {
		t.Errorf("without a descriptor the device is %q, want it without carrier", got)
	}
	if _, ok := interfaces(t, ns)["goes"]; ok {
		t.Error("a device that is not persistent outlived its descriptor")
	}
}
