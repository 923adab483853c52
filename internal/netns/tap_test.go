package netns_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

var tapMAC = net.HardwareAddr{0x02, 0xc0, 0xff, 0xee, 0x00, 0x05}

func tapInterface() netns.Interface {
	cfg := containerInterface()
	cfg.MAC = tapMAC
	return cfg
}

// newTAP makes a TAP in the namespace ns and returns its name.
func newTAP(t *testing.T, ns *netns.Handle, mac net.HardwareAddr) (*os.File, string) {
	t.Helper()
	var f *os.File
	nstest.In(t, ns, func() (err error) {
		f, err = tunnel.Create(tunnel.Options{TAP: true, MAC: mac})
		return err
	})
	t.Cleanup(func() { f.Close() })
	name, err := tunnel.Name(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, name
}

// tapWorld is world with what MoveIn changes on TAPs alone.
func tapWorld(t *testing.T, ns *netns.Handle) string {
	t.Helper()
	lines := []string{world(t, ns)}
	nstest.In(t, ns, func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			lines = append(lines, i.Name+" mac "+i.HardwareAddr.String())
			for _, key := range []string{"ipv4/conf/" + i.Name + "/arp_notify", "ipv6/conf/" + i.Name + "/ndisc_notify", "ipv6/conf/" + i.Name + "/accept_dad"} {
				value, sysctlErr := netns.Sysctl(key)
				err = errors.Join(err, sysctlErr)
				lines = append(lines, key+"="+value)
			}
		}
		return err
	})
	return strings.Join(lines, "\n")
}

func TestNetnsMoveInOfATAP(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	f, name := newTAP(t, host, nil)
	cfg := tapInterface()
	nstest.In(t, host, func() error { return netns.MoveIn(container, name, cfg) })
	nstest.In(t, container, func() error { return netns.Verify(cfg) })
	checkContainerRoutes(t, container)
	if mac, err := tunnel.HardwareAddr(f); err != nil || mac.String() != tapMAC.String() {
		t.Errorf("HardwareAddr = %v, %v, want %v", mac, err, tapMAC)
	}
	nstest.In(t, container, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if flags := link.Attrs().Flags; flags&net.FlagBroadcast == 0 || flags&net.FlagPointToPoint != 0 {
			t.Errorf("flags %v, want broadcast and not point-to-point", flags)
		}
		if details := link.Attrs(); details.RawFlags&0x80 != 0 {
			t.Error("ARP is off (IFF_NOARP)")
		}
		for key, want := range map[string]string{
			"ipv4/conf/eth0/arp_notify": "1", "ipv6/conf/eth0/ndisc_notify": "1",
			"ipv6/conf/eth0/accept_dad": "0", "ipv6/conf/eth0/accept_ra": "0",
		} {
			got, err := netns.Sysctl(key)
			if err != nil || got != want {
				t.Errorf("sysctl %s = %q (%v), want %q", key, got, err, want)
			}
		}
		return nil
	})
	// The address that the kernel probes neighbours from, made of the MAC
	// address (RFC 4291 appendix A).
	nstest.WaitFor(t, 10*time.Second, func() bool {
		list := nstest.Exec(t, container, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "link")
		return strings.Contains(list, "fe80::c0:ffff:feee:5/64") && !strings.Contains(list, "tentative")
	})
}

func TestNetnsMoveInOfATAPWithoutIPv6IsQuietAboutIt(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	_, name := newTAP(t, host, nil)
	cfg := netns.Interface{Name: "eth0", Addrs: prefixes("10.88.0.5/16")}
	nstest.In(t, host, func() error { return netns.MoveIn(container, name, cfg) })
	nstest.In(t, container, func() error {
		mode, err := netns.Sysctl("ipv6/conf/eth0/addr_gen_mode")
		if mode != "1" {
			t.Errorf("addr_gen_mode = %q, want 1: no link-local address", mode)
		}
		return err
	})
}

func TestNetnsMoveInOfATAPUndoesEachStep(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	nstest.In(t, container, func() error { return netns.SetSysctl("ipv6/conf/all/disable_ipv6", "1") })
	_, name := newTAP(t, host, net.HardwareAddr{2, 0, 0, 0, 0, 7})
	before := tapWorld(t, host) + tapWorld(t, container)
	injected := errors.New("injected")
	var failed []string
	for n := 0; ; n++ {
		step := 0
		err := host.Do(func() error {
			return netns.MoveInBefore(container, name, tapInterface(), func(s string) error {
				if step++; step <= n {
					return nil
				}
				failed = append(failed, s)
				return injected
			})
		})
		if err == nil {
			break
		}
		if !errors.Is(err, injected) || strings.Contains(err.Error(), "undo") {
			t.Fatalf("MoveIn = %v, want the injected error alone", err)
		}
		if diff := cmp.Diff(before, tapWorld(t, host)+tapWorld(t, container)); diff != "" {
			t.Fatalf("after step %q (-before +after):\n%s", failed[len(failed)-1], diff)
		}
	}
	all := strings.Join(failed, "\n")
	for _, step := range []string{"set MAC address 02:c0:ff:ee:00:05", "arp_notify", "ndisc_notify", "accept_dad"} {
		if !strings.Contains(all, step) {
			t.Errorf("no step %q was failed, only\n%s", step, all)
		}
	}
}

func TestNetnsATUNTakesNoMAC(t *testing.T) {
	host, container := nstest.NewNS(t), nstest.NewNS(t)
	_, name := newTUN(t, host, "")
	before := tapWorld(t, host) + tapWorld(t, container)
	err := host.Do(func() error { return netns.MoveIn(container, name, tapInterface()) })
	var step *netns.StepError
	if !errors.As(err, &step) || step.Step != "set MAC address 02:c0:ff:ee:00:05" {
		t.Errorf("MoveIn = %v, want a fault in setting the MAC address", err)
	}
	if diff := cmp.Diff(before, tapWorld(t, host)+tapWorld(t, container)); diff != "" {
		t.Errorf("a failed MoveIn changed (-before +after):\n%s", diff)
	}
}

func TestNetnsVerifyNamesAnotherMAC(t *testing.T) {
	ns := nstest.NewNS(t)
	_, name := newTAP(t, ns, tapMAC)
	cfg := netns.Interface{Name: name, MAC: tapMAC}
	nstest.In(t, ns, func() error { return netns.Configure(cfg) })
	nstest.In(t, ns, func() error { return netns.Verify(cfg) })
	nstest.Exec(t, ns, "ip", "link", "set", name, "address", "02:00:00:00:00:09")
	err := ns.Do(func() error { return netns.Verify(cfg) })
	if !errors.Is(err, netns.ErrDiffers) || !strings.Contains(err.Error(), `MAC address is "02:00:00:00:00:09", not 02:c0:ff:ee:00:05`) {
		t.Errorf("Verify = %v, want ErrDiffers that names both addresses", err)
	}
}

func TestValidateNamesABadMAC(t *testing.T) {
	for _, mac := range []net.HardwareAddr{{1, 2, 3, 4, 5, 6}, {0, 0, 0, 0, 0, 0}, {2, 2}, {2, 7: 9}} {
		if err := (netns.Interface{Name: "eth0", MAC: mac}).Validate(); !errors.Is(err, netns.ErrInvalid) || !strings.Contains(err.Error(), mac.String()) {
			t.Errorf("Validate with MAC %v = %v, want ErrInvalid that names it", mac, err)
		}
	}
	if err := tapInterface().Validate(); err != nil {
		t.Error(err)
	}
}
