package daemon

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

// Config says how a daemon runs. The zero value runs one with the defaults of
// this user.
type Config struct {
	// Socket is the control socket's path. Empty: control.DefaultSocket().
	Socket string

	// Listener is the control socket when it was inherited, see
	// [InheritedListener]; Socket then only names it. Nil: made at Socket. Run
	// owns it.
	Listener *net.UnixListener

	// StateDir holds the database. Empty: [DefaultStateDir]. It is made with
	// mode 0700 when missing.
	StateDir string

	// File is the configuration file's content, see [LoadFile]. Nil: none.
	File *File

	// IdleExit ends the daemon when it has had no links for that long; for
	// daemons that were started on demand. Zero: File's; negative: never.
	IdleExit time.Duration

	// Quarantine is how long a freed address rests. Zero: ipam's default.
	Quarantine time.Duration

	// Version is what the daemon says it is. Empty: "devel".
	Version string

	// Log receives life-cycle events. Nil: discarded.
	Log *slog.Logger

	// DropPrivileges gives up what root may do, once the state and the socket
	// are open; see [DropPrivileges]. For daemons that are started as root.
	DropPrivileges bool

	// Ready, if not nil, is called once when the socket answers.
	Ready func()

	// fault, if not nil, is asked before each step of an attach; its error is
	// the step's. For tests.
	fault func(step string) error
}

// DefaultStateDir is /var/lib/usernet for the system's daemon, else
// $XDG_STATE_HOME/usernet or ~/.local/state/usernet.
func DefaultStateDir() string {
	if control.DefaultSystem() {
		return "/var/lib/usernet"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "usernet")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "usernet")
	}
	return filepath.Join(os.TempDir(), "usernet-"+strconv.Itoa(os.Geteuid()))
}

// withDefaults fills zero fields.
func (c Config) withDefaults() Config {
	c.Socket = cmp.Or(c.Socket, control.DefaultSocket())
	c.StateDir = cmp.Or(c.StateDir, DefaultStateDir())
	c.Version = cmp.Or(c.Version, "devel")
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.File == nil {
		c.File = &File{}
	}
	c.IdleExit = cmp.Or(c.IdleExit, time.Duration(c.File.IdleExit))
	return c
}

// File is the daemon's configuration file, in YAML.
type File struct {
	LogLevel slog.Level      `json:"logLevel"` // debug, info, warn, error; zero: info
	IdleExit Duration        `json:"idleExit"` // such as 10m; zero: never
	Limits   FileLimits      `json:"limits"`   // per link, of every network
	Networks []NetworkConfig `json:"networks"`
}

// FileLimits are netstack.Limits with names for people; zero fields take the
// defaults stated there.
type FileLimits struct {
	Dials         int     `json:"dials"`
	TCPFlows      int     `json:"tcpFlows"`
	UDPFlows      int     `json:"udpFlows"`
	PingFlows     int     `json:"pingFlows"`
	PeerFlows     int     `json:"peerFlows"`
	NewFlows      float64 `json:"newFlows"`      // per second
	FragmentBytes int     `json:"fragmentBytes"` // bytes
	ICMPErrors    float64 `json:"icmpErrors"`    // per second
	DNSQueries    int     `json:"dnsQueries"`
}

func (l FileLimits) limits() netstack.Limits {
	return netstack.Limits{
		Dials: l.Dials, TCPFlows: l.TCPFlows, UDPFlows: l.UDPFlows, PingFlows: l.PingFlows, PeerFlows: l.PeerFlows,
		NewFlows: l.NewFlows, FragmentBytes: l.FragmentBytes, ICMPErrors: l.ICMPErrors, DNSQueries: l.DNSQueries,
	}
}

// NetworkConfig is one network of the configuration file.
type NetworkConfig struct {
	Name         string                `json:"name"`
	Subnets      []netip.Prefix        `json:"subnets"`  // at most one per family
	Gateways     []netip.Addr          `json:"gateways"` // one per family at most; zero: each subnet's first address
	Sets         [][]control.Range     `json:"sets"`     // instead of Subnets and Gateways: ranges as host-local has them
	MTU          int                   `json:"mtu"`      // bytes; zero: 65520
	Internal     bool                  `json:"internal"` // no egress
	HostServices []control.HostService `json:"hostServices"`
	Allow        []netip.Prefix        `json:"allow"` // opened although refused by default; never loopback
	control.PolicyWishes
}

// Duration is a time.Duration written as "90s" or "10m".
type Duration time.Duration

// UnmarshalJSON reads the form of time.ParseDuration.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("duration %s: want a string such as \"10m\"", b)
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

// LoadFile reads a configuration file. A key that does not exist is an error
// that names it and the nearest one that does.
func LoadFile(path string) (*File, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	f, err := parseFile(raw)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return f, nil
}

func parseFile(raw []byte) (*File, error) {
	asJSON, err := yaml.YAMLToJSONStrict(raw) // refuses duplicate keys
	if err != nil {
		return nil, err
	}
	f := &File{}
	if string(asJSON) == "null" { // an empty file
		return f, nil
	}
	if err := control.DecodeStrict(asJSON, f); err != nil {
		return nil, err
	}
	if f.IdleExit < 0 {
		return nil, fmt.Errorf("idleExit %v is negative", time.Duration(f.IdleExit))
	}
	var errs []error
	seen := map[string]bool{}
	for _, n := range f.Networks {
		if seen[n.Name] {
			errs = append(errs, fmt.Errorf("network %q is defined twice", n.Name))
		}
		seen[n.Name] = true
		if _, err := n.request(); err != nil {
			errs = append(errs, fmt.Errorf("network %q: %w", n.Name, err))
		}
	}
	return f, errors.Join(errs...)
}

// request is the network as the API would be asked for it.
func (n *NetworkConfig) request() (*control.CreateNetworkRequest, error) {
	req := &control.CreateNetworkRequest{
		Name: n.Name, Sets: n.Sets, MTU: n.MTU, Internal: n.Internal, HostServices: n.HostServices, Allow: n.Allow,
		PolicyWishes: n.PolicyWishes,
	}
	switch {
	case len(n.Sets) > 0 && len(n.Subnets)+len(n.Gateways) > 0:
		return nil, errors.New("sets exclude subnets and gateways: a range names both")
	case len(n.Sets) == 0 && len(n.Subnets) == 0:
		return nil, errors.New("subnets are missing, such as [10.90.0.0/24, \"fd90::/64\"]")
	}
	gateways := n.Gateways
	for _, subnet := range n.Subnets {
		r := control.Range{Subnet: subnet}
		for i, g := range gateways {
			if subnet.Contains(g) {
				r.Gateway = g
				gateways = append(gateways[:i:i], gateways[i+1:]...)
				break
			}
		}
		req.Sets = append(req.Sets, []control.Range{r})
	}
	if len(gateways) > 0 {
		return nil, fmt.Errorf("gateway %v is in none of the subnets %v", gateways[0], n.Subnets)
	}
	return req, nil
}

// makeStateDir makes the directory and refuses one that others could write.
func makeStateDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make state directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("state directory %s is no directory", dir)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("state directory %s has mode %04o, others could change the state; chmod it to 0700", dir, st.Mode().Perm())
	}
	return nil
}
