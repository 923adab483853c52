package conform

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/netns"
)

// sampleName is the executable's name under which the test binary is a plugin:
// a small and correct one, which makes on demand the faults that the suite is
// there to find.
const sampleName = "sample"

// sampleRoute is the route that the sample plugin gives.
const sampleRoute = "203.0.113.0/24"

// sample is one invocation. An attachment is a cable within the container, an
// address on it, the same address on the host's lo, so that the host has
// something to leak, and a file of its name.
type sample struct {
	command, id, netns, ifName string
	conf                       sampleConf
	file                       string // of the attachment
}

type sampleConf struct {
	CNIVersion string         `json:"cniVersion"`
	Name       string         `json:"name"`
	DNS        struct{}       `json:"dns"`
	Runtime    map[string]any `json:"runtimeConfig"`
	Prev       *addResult     `json:"prevResult"`
	PrevRaw    object         `json:"-"`
	Valid      *[]sampleKey   `json:"cni.dev/valid-attachments"`
	Legacy     *[]sampleKey   `json:"cni.dev/attachments"`
	State      string         `json:"state"`
	Faults     []string       `json:"faults"`
	Type       string         `json:"type"`
}

type sampleKey struct {
	Container string `json:"containerID"`
	IfName    string `json:"ifname"`
}

// lease is what an attachment's file holds.
type lease struct {
	Network, Container, IfName, Netns string
	Addr                              netip.Addr
}

// failure is an error with the code to print.
type failure struct {
	code uint
	msg  string
}

func (f *failure) Error() string { return f.msg }

func failed(code uint, format string, args ...any) error {
	return &failure{code, fmt.Sprintf(format, args...)}
}

func samplePlugin() int {
	s := &sample{command: os.Getenv("CNI_COMMAND"), id: os.Getenv("CNI_CONTAINERID"), netns: os.Getenv("CNI_NETNS"), ifName: os.Getenv("CNI_IFNAME")}
	out, err := s.run()
	if err == nil {
		fmt.Print(out)
		return 0
	}
	f := &failure{code: 999, msg: err.Error()}
	errors.As(err, &f)
	if s.fault("error-as-text") {
		fmt.Println("Error:", f.msg)
		return 1
	}
	if s.fault("wrong-codes") {
		f.code = 999
	}
	b, _ := json.Marshal(map[string]any{"cniVersion": s.conf.CNIVersion, "code": f.code, "msg": f.msg})
	fmt.Println(string(b))
	return 1
}

func (s *sample) fault(name string) bool { return slices.Contains(s.conf.Faults, name) }

func (s *sample) run() (string, error) {
	if s.command == "" {
		return "", failed(4, "CNI_COMMAND is missing")
	}
	stdin, err := readAll()
	if err != nil {
		return "", err
	}
	if s.command == "VERSION" {
		return s.version(stdin)
	}
	// A fault is asked for in the configuration, which may be in bad order itself.
	if faults := regexp.MustCompile(`"faults":\["([^"]*)"\]`).FindStringSubmatch(stdin); faults != nil {
		s.conf.Faults = faults[1:]
	}
	if !s.fault("accepts-any-environment") {
		if err := s.environment(); err != nil {
			return "", err
		}
	}
	if err := s.decode(stdin); err != nil {
		return "", err
	}
	if s.fault("hangs") {
		<-time.After(time.Hour)
	}
	unlock, err := s.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	s.file = filepath.Join(s.conf.State, s.conf.Name+"_"+s.id+"_"+s.ifName)
	switch s.command {
	case "ADD":
		return s.add()
	case "DEL":
		return "", s.del()
	case "CHECK":
		return "", s.check()
	case "GC":
		return s.gc()
	}
	if s.fault("status-fails") {
		return "", failed(50, "not available")
	}
	return "", nil
}

func readAll() (string, error) {
	b, err := os.ReadFile("/dev/stdin")
	if err != nil && errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	return string(b), err
}

func (s *sample) version(stdin string) (string, error) {
	var in struct {
		CNIVersion string `json:"cniVersion"`
		Faults     []string
	}
	_ = json.Unmarshal([]byte(stdin), &in) // old runtimes send nothing
	if in.CNIVersion == "" || os.Getenv("SAMPLE_FAULT") == "version-own" {
		in.CNIVersion = "1.1.0"
	}
	versions := SpecVersions
	if os.Getenv("SAMPLE_FAULT") == "version-empty" {
		versions = nil
	}
	b, err := json.Marshal(versionReply{in.CNIVersion, versions})
	return string(b), err
}

var sampleID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// environment judges the variables.
func (s *sample) environment() error {
	attachment := slices.Contains([]string{"ADD", "DEL", "CHECK"}, s.command)
	switch {
	case !attachment && s.command != "GC" && s.command != "STATUS":
		return failed(4, "CNI_COMMAND=%q is unknown", s.command)
	case !attachment:
		return nil
	case !sampleID.MatchString(s.id) || strings.Contains(s.id, "\n"):
		return failed(4, "CNI_CONTAINERID=%q", s.id)
	case s.ifName == "" || len(s.ifName) > 15 || s.ifName == "." || s.ifName == ".." || strings.ContainsAny(s.ifName, "/: \t\n"):
		return failed(4, "CNI_IFNAME=%q", s.ifName)
	case s.netns == "" && s.command != "DEL":
		return failed(4, "CNI_NETNS is missing")
	}
	return nil
}

// decode judges the configuration.
func (s *sample) decode(stdin string) error {
	faults := s.conf.Faults
	var err error
	if s.fault("takes-first-value") {
		err = json.NewDecoder(strings.NewReader(stdin)).Decode(&s.conf)
	} else {
		err = json.Unmarshal([]byte(stdin), &s.conf)
	}
	if err != nil && !(s.command == "GC" && s.fault("gc-takes-bad-list")) {
		return failed(6, "decode: %v", err)
	}
	s.conf.Faults = faults
	var raw struct {
		Prev object `json:"prevResult"`
	}
	_ = json.Unmarshal([]byte(stdin), &raw) // it passed above
	s.conf.PrevRaw = raw.Prev
	if s.conf.CNIVersion == "" {
		s.conf.CNIVersion = "0.1.0"
	}
	since := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[s.command]
	switch v := s.conf.CNIVersion; {
	case !slices.Contains(SpecVersions, v):
		return failed(1, "cniVersion %q", v)
	case !sampleID.MatchString(s.conf.Name) && !s.fault("any-name"):
		return failed(7, "name %q", s.conf.Name)
	case s.conf.Type == "":
		return failed(7, "type is missing")
	case since != "" && !atLeast(v, since) && !s.fault("any-verb"):
		return failed(1, "cniVersion %s has no %s", v, s.command)
	}
	return nil
}

func (s *sample) lock() (func(), error) {
	if err := os.MkdirAll(s.conf.State, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.conf.State, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil || s.fault("no-lock") {
		return func() {}, err
	}
	return func() { f.Close() }, unix.Flock(int(f.Fd()), unix.LOCK_EX)
}

// leases reads all attachments' files.
func (s *sample) leases() (all []lease, err error) {
	files, err := filepath.Glob(filepath.Join(s.conf.State, "*_*_*"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // deleted meanwhile
		}
		var l lease
		if json.Unmarshal(b, &l) == nil {
			all = append(all, l)
		}
	}
	return all, nil
}

// allocate picks an address that no lease has.
func (s *sample) allocate() (netip.Addr, error) {
	all, err := s.leases()
	if err != nil {
		return netip.Addr{}, err
	}
	addr := netip.MustParseAddr("10.66.0.2")
	for !s.fault("same-address") && slices.ContainsFunc(all, func(l lease) bool { return l.Addr == addr }) {
		addr = addr.Next()
	}
	if s.fault("no-lock") {
		<-time.After(200 * time.Millisecond) // make sure of the race
	}
	return addr, nil
}

func (s *sample) add() (string, error) {
	ns, err := netns.Open(s.netns)
	if err != nil {
		return "", err
	}
	defer ns.Close()
	own, err := netns.Current()
	if err != nil {
		return "", err
	}
	defer own.Close()
	if ns.Equal(own) && !s.fault("takes-own-netns") {
		return "", failed(8, "CNI_NETNS is the plugin's own")
	}
	l := lease{Network: s.conf.Name, Container: s.id, IfName: s.ifName, Netns: s.netns}
	if l.Addr, err = s.allocate(); err != nil {
		return "", err
	}
	if s.fault("leaks-when-failing") {
		_ = onLo(l.Addr, true)
	}
	if err := ns.Do(func() error { return s.mayMake() }); err != nil {
		return "", err
	}
	b, err := json.Marshal(l)
	if err == nil {
		err = os.WriteFile(s.file, b, 0o600)
	}
	if err != nil {
		return "", err
	}
	if err := onLo(l.Addr, true); err != nil {
		return "", err
	}
	if s.fault("dies-badly") {
		if err := os.WriteFile(s.file+".half", nil, 0o600); err != nil {
			return "", err
		}
		<-time.After(200 * time.Millisecond) // a time to be killed in
		defer os.Remove(s.file + ".half")
	}
	var mac string
	if err := ns.Do(func() error { mac, err = s.make(l); return err }); err != nil {
		return "", err
	}
	return s.result(l, mac)
}

// mayMake looks whether the interface is there already.
func (s *sample) mayMake() error {
	if s.fault("takes-over") {
		return netns.DeleteLink(s.ifName)
	}
	if _, err := net.InterfaceByName(s.ifName); err == nil {
		return failed(999, "interface %s exists", s.ifName)
	}
	return nil
}

// make makes the cable in the current namespace and returns its MAC address.
func (s *sample) make(l lease) (string, error) {
	name := s.ifName
	if s.fault("own-name") {
		name = "eth0"
	}
	peer := fmt.Sprintf("p%x", sha256.Sum256([]byte(s.file)))[:12]
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}); err != nil {
		return "", err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return "", err
	}
	if err := netlink.LinkSetAlias(link, s.file); err != nil {
		return "", err
	}
	if !s.fault("no-address") {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(l.Addr, 24))}); err != nil {
			return "", err
		}
	}
	if !s.fault("stays-down") {
		if err := netlink.LinkSetUp(link); err != nil {
			return "", err
		}
	}
	if !s.fault("no-route") && !s.fault("stays-down") {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(sampleRoute)), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAppend(route); err != nil {
			return "", err
		}
	}
	return link.Attrs().HardwareAddr.String(), nil
}

// onLo puts the address on the host's lo, or takes it away.
func onLo(addr netip.Addr, add bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 32))}
	if add {
		return netlink.AddrReplace(lo, a)
	}
	if err := netlink.AddrDel(lo, a); !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	return nil
}

// result prints the result in the configuration's version.
func (s *sample) result(l lease, mac string) (string, error) {
	v, cidr := s.conf.CNIVersion, l.Addr.String()+"/24"
	faults := map[string]func(){
		"bad-notation": func() { cidr = l.Addr.String() },
		"result-1.1.0": func() { v = "1.1.0" },
		"no-mac":       func() { mac = "" },
		"wrong-mac":    func() { mac = "02:00:00:00:00:01" },
	}
	for name, do := range faults {
		if s.fault(name) {
			do()
		}
	}
	routes := []object{{"dst": sampleRoute}}
	if old(v) && !s.fault("new-keys") {
		return encode(object{"cniVersion": v, "ip4": object{"ip": cidr, "routes": routes}, "dns": object{}}), nil
	}
	iface := object{"name": s.ifName, "sandbox": s.netns, "mac": mac}
	if atLeast(v, "1.1.0") {
		iface["mtu"] = 1500
	}
	if s.fault("wrong-mtu") {
		iface["mtu"] = 1400
	}
	if s.fault("wrong-sandbox") {
		iface["sandbox"] = "/proc/1/ns/net"
	}
	interfaces, ips := []any{}, []any{}
	if prev := s.conf.PrevRaw; prev != nil && !s.fault("forgets-prevResult") {
		interfaces, _ = prev["interfaces"].([]any)
		ips, _ = prev["ips"].([]any)
	}
	ip := object{"address": cidr, "interface": len(interfaces)}
	if !atLeast(v, "1.0.0") && !s.fault("no-family") {
		ip["version"] = "4"
	}
	if s.fault("bad-index") {
		ip["interface"] = len(interfaces) + 1
	}
	result := object{"cniVersion": v, "interfaces": append(interfaces, iface), "ips": append(ips, ip), "routes": routes, "dns": object{}}
	text := encode(result)
	if s.fault("chatters") {
		text = "attached\n" + text
	}
	return text, nil
}
