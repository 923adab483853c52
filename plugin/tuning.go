package plugin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
)

// tuningConf is what the plugin tuning sets: sysctls of the container's
// namespace, and attributes of its interface. A nil pointer, an empty MAC and
// an MTU of 0 leave what is there.
type tuningConf struct {
	Sysctl   map[string]string `json:"sysctl,omitempty"`
	MAC      string            `json:"mac,omitempty"`
	Promisc  *bool             `json:"promisc,omitempty"`
	MTU      int               `json:"mtu,omitempty"` // bytes
	Allmulti *bool             `json:"allmulti,omitempty"`
	TxQLen   *int              `json:"txQLen,omitempty"` // packets

	DataDir string `json:"-"` // where ADD leaves what DEL restores
}

const (
	// tuningDir is the reference's default of dataDir.
	tuningDir = "/run/cni/tuning"
	// tuningAllowlist names the sysctls that may be set, one pattern a line. No
	// file: all of the network's.
	tuningAllowlist = "/etc/cni/tuning/allowlist.conf"
)

// tuningProgram sets what the kernel keeps in the container's namespace, of
// whatever interface the plugins before it made. The daemon has no part in it.
func tuningProgram() *program {
	own := func(of func(*tuningConf) any) field {
		return func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, of(&c.Tuning)) }
	}
	return chained(nameTuning, map[string]field{
		"sysctl":   own(func(t *tuningConf) any { return &t.Sysctl }),
		"mac":      own(func(t *tuningConf) any { return &t.MAC }),
		"promisc":  own(func(t *tuningConf) any { return &t.Promisc }),
		"mtu":      own(func(t *tuningConf) any { return &t.MTU }),
		"allmulti": own(func(t *tuningConf) any { return &t.Allmulti }),
		"txQLen":   own(func(t *tuningConf) any { return &t.TxQLen }),
		"dataDir":  own(func(t *tuningConf) any { return &t.DataDir }),
		"args":     decodeTuningArgs,
	}, (*invocation).tuningAdd, (*invocation).tuningDel, (*invocation).tuningCheck)
}

// decodeTuningArgs takes args.cni, which beats the configuration's own keys.
func decodeTuningArgs(c *config, raw json.RawMessage) error {
	var args struct {
		CNI tuningConf `json:"cni"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return err
	}
	c.TuningArgs = args.CNI
	return nil
}

// tuning returns what is to be set: CNI_ARGS MAC, then args.cni, then the
// capability mac, each before what stands behind it.
func (i *invocation) tuning() (tuningConf, error) {
	t, args := i.conf.Tuning, i.conf.TuningArgs
	env, err := parseArgs(i.params.Args)
	if err != nil {
		return t, err
	}
	sysctl := maps.Clone(t.Sysctl)
	if sysctl == nil {
		sysctl = map[string]string{}
	}
	maps.Copy(sysctl, args.Sysctl)
	t.Sysctl = sysctl
	for _, mac := range []string{env.MAC, args.MAC, i.conf.Runtime.MAC} {
		if mac != "" {
			t.MAC = mac
		}
	}
	if args.Promisc != nil {
		t.Promisc = args.Promisc
	}
	if args.MTU != 0 {
		t.MTU = args.MTU
	}
	if args.Allmulti != nil {
		t.Allmulti = args.Allmulti
	}
	if args.TxQLen != nil {
		t.TxQLen = args.TxQLen
	}
	if t.DataDir == "" {
		t.DataDir = tuningDir
	}
	return t, t.check()
}

// check judges the values, and brings sysctls into the form of a path below
// /proc/sys/net.
func (t *tuningConf) check() error {
	if t.MAC != "" {
		mac, err := parseMAC("mac", t.MAC)
		if err != nil {
			return err
		}
		t.MAC = mac.String()
	}
	switch {
	case t.MTU < 0 || t.MTU > maxMTU:
		return badValue("mtu", t.MTU, fmt.Sprintf("want 0 to %d bytes", maxMTU))
	case t.TxQLen != nil && *t.TxQLen < 0:
		return badValue("txQLen", *t.TxQLen, "want a number of packets")
	}
	keys := map[string]string{}
	for key, value := range t.Sysctl {
		path, ok := strings.CutPrefix(sysctlPath(key), "net/")
		if !ok || !filepath.IsLocal(path) {
			return badValue("sysctl", key, `want a key of the network, such as "net.ipv4.ip_forward"`)
		}
		keys[path] = value
	}
	t.Sysctl = keys
	return nil
}

// sysctlPath turns a key into its path below /proc/sys. As in sysctl(8), the
// first separator decides: after a dot slashes stand for dots, as in
// "net.ipv4.conf.eth0/100.forwarding".
func sysctlPath(key string) string {
	if at := strings.IndexAny(key, "./"); at < 0 || key[at] == '/' {
		return key
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

// none reports that there is nothing to set.
func (t *tuningConf) none() bool { return len(t.Sysctl) == 0 && !t.link() }

// link reports that attributes of the interface are to be set.
func (t *tuningConf) link() bool {
	return t.MAC != "" || t.Promisc != nil || t.MTU != 0 || t.Allmulti != nil || t.TxQLen != nil
}

// allowed holds the sysctls against the administrator's list.
func (t *tuningConf) allowed(list string) error {
	f, err := os.Open(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fail(types.ErrIOFailure, "tuning: read the list of sysctls that may be set: %v", err)
	}
	defer f.Close()
	var patterns []*regexp.Regexp
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" {
			p, err := regexp.Compile(line)
			if err != nil {
				return fail(types.ErrIOFailure, "tuning: %s: %v", list, err)
			}
			patterns = append(patterns, p)
		}
	}
	if err := lines.Err(); err != nil {
		return fail(types.ErrIOFailure, "tuning: read %s: %v", list, err)
	}
	for _, path := range slices.Sorted(maps.Keys(t.Sysctl)) {
		key := "net." + strings.ReplaceAll(path, "/", ".")
		if !slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(key) }) {
			return badValue("sysctl", key, "no line of "+list+" allows it")
		}
	}
	return nil
}

func (i *invocation) tuningAdd(ctx context.Context) error {
	t, err := i.tuning()
	if err != nil {
		return err
	}
	if len(i.conf.PrevResult) == 0 {
		return i.notChained()
	}
	if t.none() {
		return i.passOn()
	}
	if err := t.allowed(tuningAllowlist); err != nil {
		return err
	}
	prev, err := i.prevResult()
	if err != nil {
		return err
	}
	target, err := openNetns(i.params.Netns)
	if err != nil {
		return err
	}
	defer target.Close()
	tuner := tuner{inv: i, want: t}
	if err := target.Do(tuner.set); err != nil {
		return fmt.Errorf("tuning of %s in CNI_NETNS=%q: %w", i.params.IfName, i.params.Netns, err)
	}
	for _, f := range prev.Interfaces {
		if f.Sandbox != "" && f.Name == i.params.IfName {
			t.report(f)
		}
	}
	if err := printResult(i.Stdout, prev, i.version); err != nil {
		i.undoing(ctx, "tuning", func(context.Context) error {
			return target.Do(func() error { tuner.undo.Run(); return nil })
		})
		return err
	}
	return nil
}

// report makes a result's interface say what was set.
func (t *tuningConf) report(f *types100.Interface) {
	if t.MAC != "" {
		f.Mac = t.MAC
	}
	if t.MTU != 0 {
		f.Mtu = t.MTU
	}
}

// tuningDel sets the interface's attributes back. Sysctls stay, as with the
// reference: nobody knows who has set them since, and the namespace ends.
func (i *invocation) tuningDel(context.Context) error {
	dir := i.conf.Tuning.DataDir
	if dir == "" {
		dir = tuningDir
	}
	path := i.backupPath(dir)
	was, err := readBackup(path)
	if was == nil || err != nil {
		return err
	}
	if err := i.inContainer(func() error { return restoreLink(i.params.IfName, was) }); err != nil {
		return fmt.Errorf("tuning: set %s back: %w", i.params.IfName, err)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// restoreLink sets an interface's attributes. One that is gone has none.
func restoreLink(name string, was *tuningConf) error {
	link, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(was.each(link, func(_ string, set func() error) error { return set() })...)
}

func (i *invocation) tuningCheck(context.Context) error {
	t, err := i.tuning()
	if err != nil {
		return err
	}
	if len(i.conf.PrevResult) == 0 {
		return i.notChained()
	}
	if t.none() {
		return nil
	}
	target, err := openNetns(i.params.Netns)
	if err != nil {
		return err
	}
	defer target.Close()
	return target.Do(func() error {
		for path, want := range t.Sysctl {
			have, err := netns.Sysctl(path)
			if err == nil && strings.Join(strings.Fields(have), " ") != strings.Join(strings.Fields(want), " ") {
				err = fail(ErrAttachment, "sysctl net/%s is %q, not %q", path, have, want)
			}
			if err != nil {
				return err
			}
		}
		if !t.link() {
			return nil
		}
		link, err := netlink.LinkByName(i.params.IfName)
		if err != nil {
			return fail(ErrAttachment, "interface %s in CNI_NETNS=%q: %v", i.params.IfName, i.params.Netns, err)
		}
		if have := attributes(link, &t); !have.sameLink(&t) {
			return fail(ErrAttachment, "interface %s in CNI_NETNS=%q has %s, not %s", i.params.IfName, i.params.Netns, compact(have), compact(t))
		}
		return nil
	})
}

// attributes returns those attributes of an interface that t is about.
func attributes(link netlink.Link, t *tuningConf) *tuningConf {
	a, have := link.Attrs(), &tuningConf{}
	if t.MAC != "" {
		have.MAC = a.HardwareAddr.String()
	}
	if t.Promisc != nil {
		have.Promisc = new(a.RawFlags&unix.IFF_PROMISC != 0)
	}
	if t.MTU != 0 {
		have.MTU = a.MTU
	}
	if t.Allmulti != nil {
		have.Allmulti = new(a.RawFlags&unix.IFF_ALLMULTI != 0)
	}
	if t.TxQLen != nil {
		have.TxQLen = new(a.TxQLen)
	}
	return have
}

// sameLink compares the attributes of an interface.
func (t *tuningConf) sameLink(o *tuningConf) bool {
	a, b := *t, *o
	a.Sysctl, b.Sysctl, a.DataDir, b.DataDir = nil, nil, "", ""
	return compact(a) == compact(b)
}

// each calls do with the setter of every attribute that t has, and returns the
// errors.
func (t *tuningConf) each(link netlink.Link, do func(what string, set func() error) error) []error {
	var errs []error
	step := func(what string, set func() error) {
		if err := do(what, set); err != nil {
			errs = append(errs, fmt.Errorf("set %s: %w", what, err))
		}
	}
	if t.MAC != "" {
		step("MAC address "+t.MAC, func() error {
			mac, err := net.ParseMAC(t.MAC)
			if err != nil {
				return err
			}
			return netlink.LinkSetHardwareAddr(link, mac)
		})
	}
	if t.Promisc != nil {
		step(fmt.Sprintf("promisc %v", *t.Promisc), either(*t.Promisc, link, netlink.SetPromiscOn, netlink.SetPromiscOff))
	}
	if t.MTU != 0 {
		step(fmt.Sprintf("MTU %d", t.MTU), func() error { return netlink.LinkSetMTU(link, t.MTU) })
	}
	if t.Allmulti != nil {
		step(fmt.Sprintf("allmulti %v", *t.Allmulti), either(*t.Allmulti, link, netlink.LinkSetAllmulticastOn, netlink.LinkSetAllmulticastOff))
	}
	if t.TxQLen != nil {
		step(fmt.Sprintf("txQLen %d", *t.TxQLen), func() error { return netlink.LinkSetTxQLen(link, *t.TxQLen) })
	}
	return errs
}

func either(on bool, link netlink.Link, yes, no func(netlink.Link) error) func() error {
	if on {
		return func() error { return yes(link) }
	}
	return func() error { return no(link) }
}
