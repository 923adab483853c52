package tunnel_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
	"github.com/usernet/usernet/tunnel/tunneltest"
)

func TestNetnsCreateMakesATAPThatIsReadyToOpen(t *testing.T) {
	ns := nstest.NewNS(t)
	f := createIn(t, ns, tunnel.Options{TAP: true, MAC: containerMAC, MTU: 1400, Alias: "whose it is"})
	if err := tunnel.ValidateTAP(f); err != nil {
		t.Error(err)
	}
	i := interfaces(t, ns)["un0"]
	if i.HardwareAddr.String() != containerMAC.String() || i.MTU != 1400 || i.Flags&(net.FlagUp|net.FlagPointToPoint) != 0 || i.Flags&net.FlagBroadcast == 0 {
		t.Errorf("interface = %+v, want un0 of %v, broadcast, down with MTU 1400", i, containerMAC)
	}
	details := nstest.Exec(t, ns, "ip", "-details", "link", "show", "un0")
	for _, want := range []string{"tun type tap", "vnet_hdr on", "qlen 2000", "alias whose it is"} {
		if !strings.Contains(details, want) {
			t.Errorf("no %q in\n%s", want, details)
		}
	}
	random := createIn(t, ns, tunnel.Options{TAP: true})
	mac, err := tunnel.HardwareAddr(random)
	if err != nil || mac[0]&3 != 2 || !bytes.Equal(mac, interfaces(t, ns)["un1"].HardwareAddr) {
		t.Errorf("HardwareAddr = %v, %v, want a random locally administered one", mac, err)
	}
}

func TestNetnsCreateRefusesAMACWithoutLeak(t *testing.T) {
	ns := nstest.NewNS(t)
	before := openFiles(t)
	for says, o := range map[string]tunnel.Options{
		`create TUN "un%d": a TUN has no MAC address`:                     {MAC: containerMAC},
		`create TAP "un%d": MAC address "ff:ff:ff:ff:ff:ff": want six`:    {TAP: true, MAC: broadcastMAC},
		`MAC address "00:00:00:00:00:00": want six`:                       {TAP: true, MAC: make(net.HardwareAddr, 6)},
		`MAC address "02:00:00:00:00:00:00:01": want six bytes that name`: {TAP: true, MAC: net.HardwareAddr{2, 7: 1}},
	} {
		if err := ns.Do(func() error { _, err := tunnel.Create(o); return err }); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Create(%+v) = %v, want it to say %q", o, err, says)
		}
	}
	if after := openFiles(t); after != before || len(interfaces(t, ns)) != 0 {
		t.Errorf("%d descriptors open after refusals, %d before; interfaces %v", after, before, interfaces(t, ns))
	}
}

func TestNetnsTAPAndTUNAreNotMistaken(t *testing.T) {
	ns := nstest.NewNS(t)
	tun, tap := createIn(t, ns, tunnel.Options{}), createIn(t, ns, tunnel.Options{TAP: true})
	bare := rawTUN(t, ns, unix.IFF_TAP|unix.IFF_NO_PI)
	_, openTUN := tunnel.Open(tap, 0)
	_, openTAP := tunnel.OpenTAP(tun, 0, tunnel.TAPConfig{})
	_, noMAC := tunnel.HardwareAddr(tun)
	for says, err := range map[string]error{
		"not a usable TUN: it is a TAP device (un1, flags":                     tunnel.Validate(tap),
		"want /dev/net/tun attached with IFF_TUN|IFF_NO_PI":                    openTUN,
		"not a usable TAP: it is a TUN device (un0, flags":                     tunnel.ValidateTAP(tun),
		"want /dev/net/tun attached with IFF_TAP|IFF_NO_PI":                    openTAP,
		"not a usable TAP: it is a TAP device without virtio headers (dev0, f": tunnel.ValidateTAP(bare),
		"the interface has none, as it is no TAP":                              noMAC,
	} {
		var descriptor *tunnel.DescriptorError
		if err == nil || !strings.Contains(err.Error(), says) || (err != noMAC && !errors.As(err, &descriptor)) {
			t.Errorf("error %v, want it to say %q", err, says)
		}
	}
	for _, f := range []*os.File{tun, tap} {
		if _, err := f.Stat(); err != nil {
			t.Errorf("a refused Open closed its caller's file: %v", err)
		}
	}
}

func TestNetnsOpenTAPRefusesContradictions(t *testing.T) {
	ns := nstest.NewNS(t)
	f := createIn(t, ns, tunnel.Options{TAP: true, MAC: containerMAC})
	for says, cfg := range map[string]tunnel.TAPConfig{
		"the container's interface has the MAC address 02:c0:ff:ee:00:05, not 02:bb:bb:bb:bb:bb": {MAC: strangerMAC},
		"has the gateway's MAC address 02:c0:ff:ee:00:05; give it another":                       {GatewayMAC: containerMAC},
		`gateway: MAC address "ff:ff:ff:ff:ff:ff": want six`:                                     {GatewayMAC: broadcastMAC},
		"address ::ffff:10.0.0.1: want an IPv4 or IPv6 address":                                  {Addrs: []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}},
		"address fe80::1%eth0: want an IPv4 or IPv6 address without zone":                        {Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}},
	} {
		if _, err := tunnel.OpenTAP(f, 0, cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("OpenTAP(%+v) = %v, want it to say %q", cfg, err, says)
		}
	}
	if _, err := tunnel.OpenTAP(f, -1, tunnel.TAPConfig{}); err == nil || !strings.Contains(err.Error(), "MTU -1 is outside") {
		t.Errorf("OpenTAP with MTU -1 = %v", err)
	}
	dev, err := tunnel.OpenTAP(f, 1400, tunnel.TAPConfig{MAC: containerMAC})
	if err != nil {
		t.Fatalf("the file is of no use after refusals: %v", err)
	}
	if dev.MTU() != 1400 {
		t.Errorf("MTU() = %d, want 1400", dev.MTU())
	}
	if _, err := dev.ReadFrame([][]byte{make([]byte, tunnel.HeaderLen+7)}); !errors.Is(err, tunnel.ErrFrame) {
		t.Errorf("ReadFrame without room for a packet = %v, want ErrFrame", err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}

// TestNetnsTAPWriteRefusesWhatNoFrameCanBe is what the suite cannot ask, as
// in-memory devices move anything.
func TestNetnsTAPWriteRefusesWhatNoFrameCanBe(t *testing.T) {
	dev := nstest.TAP(t, nstest.NewNS(t), silent)
	notIP := tunneltest.FrameSpec{}.Frame()
	notIP[tunnel.HeaderLen] = 0x35
	beyond := tunneltest.FrameSpec{TCP: true, Partial: true}.Frame()
	beyond[6], beyond[7] = 0xff, 0xff
	outside := tunneltest.FrameSpec{TCP: true, Partial: true}.Frame()
	outside[6] = 0xf0
	for name, frame := range map[string][]byte{"not IP": notIP, "csum_start beyond all frames": beyond, "csum_start outside": outside} {
		if err := dev.WriteFrame([][]byte{frame}); !errors.Is(err, tunnel.ErrFrame) {
			t.Errorf("WriteFrame of a frame with %s = %v, want ErrFrame", name, err)
		}
	}
}

// TestNetnsTAPDropsEachFrameUnderOneName sends what no switch should see, from
// inside a real container's interface, and then a packet.
func TestNetnsTAPDropsEachFrameUnderOneName(t *testing.T) {
	ns := nstest.NewNS(t)
	cfg := silent
	cfg.MAC = containerMAC
	dev := nstest.TAP(t, ns, cfg)
	peer := newPacketSocket(t, ns, "eth0")
	packet := tunneltest.FrameSpec{Payload: []byte("hello")}.Frame()
	udp := packet[tunnel.HeaderLen:]
	for _, frame := range [][]byte{
		etherFrom(strangerMAC, gatewayMAC, typeIPv4, udp),
		etherFrom(strangerMAC, gatewayMAC, typeIPv4, udp),
		ether(strangerMAC, typeIPv4, udp),
		ether(gatewayMAC, typeVLAN, append([]byte{0, 5, 8, 0}, udp...)),
		ether(broadcastMAC, 0x888e, make([]byte, 38)),
		ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.5")),
		ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9")[:20]),
		ether(solicitedMAC, typeIPv6, solicitation{src: "fd88::5", dst: solicited, target: "fd88::9", hopLimit: 1}.packet()),
		ether(solicitedMAC, typeIPv6, solicitation{src: "::", dst: "ff02::1:ff00:9", target: "fe80::9"}.packet()),
	} {
		if err := peer.send(append(make([]byte, tunnel.HeaderLen), frame...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := peer.WriteFrame([][]byte{packet}); err != nil {
		t.Fatal(err)
	}
	if got := readWithin(t, dev, 10*time.Second); !bytes.Equal(got[tunnel.HeaderLen:], udp) {
		t.Errorf("the first packet to come up is % x", got)
	}
	want := map[string]uint64{
		"ether_source": 2, "ether_destination": 1, "ether_vlan": 1, "ether_type": 1,
		"arp_unanswered": 1, "arp_malformed": 1, "ndp_malformed": 1, "ndp_unanswered": 1,
	}
	if diff := cmp.Diff(want, dev.(tunnel.DropCounter).Drops()); diff != "" {
		t.Errorf("drops (-want +got):\n%s", diff)
	}
}

// TestNetnsTAPCountsALostAnswer: the question is in the queue when somebody
// takes the interface down.
func TestNetnsTAPCountsALostAnswer(t *testing.T) {
	ns := nstest.NewNS(t)
	cfg := silent
	cfg.MAC = containerMAC
	dev := nstest.TAP(t, ns, cfg)
	peer := newPacketSocket(t, ns, "eth0")
	question := ether(broadcastMAC, typeARP, arp(1, "10.88.0.5", "10.88.0.9"))
	if err := peer.send(append(make([]byte, tunnel.HeaderLen), question...)); err != nil {
		t.Fatal(err)
	}
	nstest.Exec(t, ns, "ip", "link", "set", "eth0", "down")
	ended := make(chan error, 1)
	go func() {
		for { // the kernel may have sent MLD reports before
			if _, err := tunneltest.ReadFrame(dev); err != nil {
				ended <- err
				return
			}
		}
	}()
	drops := dev.(tunnel.DropCounter)
	nstest.WaitFor(t, 10*time.Second, func() bool { return drops.Drops()["neighbor_answer_lost"] == 1 })
	nstest.In(t, ns, func() error { return netns.DeleteLink("eth0") })
	if err := <-ended; !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("ReadFrame = %v, want ErrGone", err)
	}
	if _, err := tunnel.HardwareAddr(createIn(t, ns, tunnel.Options{TAP: true})); err != nil {
		t.Error(err)
	}
}

// TestNetnsTAPHardwareAddrFollowsTheInterface: SIOCGIFHWADDR looks where the
// interface is, although another of its name is where it was made.
func TestNetnsTAPHardwareAddrFollowsTheInterface(t *testing.T) {
	made, moved := nstest.NewNS(t), nstest.NewNS(t)
	f := createIn(t, made, tunnel.Options{TAP: true, MAC: containerMAC})
	name, err := tunnel.Name(f)
	if err != nil {
		t.Fatal(err)
	}
	nstest.In(t, made, func() error { return netns.MoveIn(moved, name, silent) })
	createIn(t, made, tunnel.Options{TAP: true, Name: "eth0", MAC: strangerMAC})
	if mac, err := tunnel.HardwareAddr(f); err != nil || mac.String() != containerMAC.String() {
		t.Errorf("HardwareAddr = %v, %v, want %v", mac, err, containerMAC)
	}
	// Without any privilege over it.
	nstest.In(t, made, func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&header, &make([]unix.CapUserData, 2)[0]); err != nil {
			return os.NewSyscallError("capset", err)
		}
		_, err := tunnel.HardwareAddr(f)
		return err
	})
	nstest.In(t, moved, func() error { return netns.DeleteLink("eth0") })
	if _, err := tunnel.HardwareAddr(f); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("HardwareAddr of a deleted interface = %v, want ErrGone", err)
	}
	if _, err := tunnel.OpenTAP(f, 0, tunnel.TAPConfig{}); err == nil || !strings.Contains(err.Error(), "attached to no interface") {
		t.Errorf("OpenTAP of a deleted interface = %v", err)
	}
}
