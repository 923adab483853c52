package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
)

// pluginType is the type in conflists, and so the executable's name in a
// runtime's directory of plugins.
const pluginType = "usernet"

// pluginPackage is the main package of the plugin, by which its executable is
// recognised.
const pluginPackage = "github.com/usernet/usernet/cmd/usernet-cni"

// conflist is the order of keys that people expect.
type conflist struct {
	CNIVersion  string           `json:"cniVersion"`
	CNIVersions []string         `json:"cniVersions"`
	Name        string           `json:"name"`
	Plugins     []conflistPlugin `json:"plugins"`
}

type conflistPlugin struct {
	Type         string          `json:"type"`
	Socket       string          `json:"socket,omitempty"`
	Device       string          `json:"device,omitempty"`
	MTU          int             `json:"mtu,omitempty"`
	Internal     bool            `json:"internal,omitempty"`
	HostAccess   *conflistHost   `json:"hostAccess,omitempty"`
	Capabilities map[string]bool `json:"capabilities"`
	IPAM         conflistIPAM    `json:"ipam"`
}

type conflistHost struct {
	Enabled bool `json:"enabled"`
	Forward bool `json:"forward,omitempty"`
}

type conflistIPAM struct {
	Type   string            `json:"type"`
	Ranges [][]conflistRange `json:"ranges"`
}

type conflistRange struct {
	Subnet netip.Prefix `json:"subnet"`
}

// conflistCapabilities are the arguments of runtimes that the plugin honours.
var conflistCapabilities = map[string]bool{
	"portMappings": true, "ips": true, "mac": true, "aliases": true, "dns": true, "ipRanges": true, "bandwidth": true,
}

// conflistFlags say what a conflist is to hold.
type conflistFlags struct {
	name     string
	subnets  []string
	device   string
	mtu      int
	internal bool
	host     conflistHost
}

func (f *conflistFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "usernet", "the network's `NAME`")
	flags.StringArrayVar(&f.subnets, "subnet", []string{"10.84.0.0/16", "fd84:7573:6572::/64"}, "`SUBNET` of the network, once per family")
	flags.StringVar(&f.device, "device", "", "what containers get: \"tun\", IP packets, or \"tap\", Ethernet with a real MAC address (default tun)")
	flags.IntVar(&f.mtu, "mtu", 0, "MTU in `BYTES` (default 65520)")
	flags.BoolVar(&f.host.Enabled, "host-access", false, "let the host reach the containers at their addresses, as kubelet's probes do")
	flags.BoolVar(&f.host.Forward, "host-forward", false, "--host-access, and for whom the host forwards, as CRI-O's hostPort needs it: every port is open to them")
	flags.BoolVar(&f.internal, "internal", false, "no way out: only the network's own containers")
}

// conflist makes the text of the list.
func (a *app) conflist(f *conflistFlags) ([]byte, error) {
	subnets, err := parsePrefixes("subnet", f.subnets)
	if err != nil {
		return nil, err
	}
	switch f.device {
	case "", control.DeviceTUN, control.DeviceTAP:
	default:
		return nil, fmt.Errorf("--device %q: want %q or %q", f.device, control.DeviceTUN, control.DeviceTAP)
	}
	p := conflistPlugin{
		Type: pluginType, Socket: a.socket, Device: f.device, MTU: f.mtu, Internal: f.internal,
		Capabilities: conflistCapabilities, IPAM: conflistIPAM{Type: pluginType},
	}
	if f.host.Enabled || f.host.Forward {
		p.HostAccess = &conflistHost{Enabled: true, Forward: f.host.Forward}
	}
	for _, s := range subnets {
		p.IPAM.Ranges = append(p.IPAM.Ranges, []conflistRange{{Subnet: s}})
	}
	text, err := json.MarshalIndent(conflist{
		CNIVersion: "1.0.0", CNIVersions: []string{"0.4.0", "1.0.0", "1.1.0"},
		Name: f.name, Plugins: []conflistPlugin{p},
	}, "", "  ")
	return append(text, '\n'), err
}

func (a *app) cniCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cni",
		Short: "Install the CNI plugin for podman, containerd, CRI-O and others",
		Args:  a.group,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.cniInstallCommand(), a.cniConflistCommand())
	return cmd
}

func (a *app) cniConflistCommand() *cobra.Command {
	var f conflistFlags
	cmd := &cobra.Command{
		Use:     "conflist",
		Short:   "Print a network configuration of type usernet",
		Example: "  usernet cni conflist --name web --subnet 10.20.0.0/24 --subnet fd20::/64 > /etc/cni/net.d/web.conflist",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := a.conflist(&f)
			if err != nil {
				return usageError(cmd, err)
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) cniInstallCommand() *cobra.Command {
	var (
		f      conflistFlags
		i      installer
		force  bool
		dropIn bool
	)
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Copy the plugin to where runtimes look for it, and write a conflist",
		Long: `Copies usernet-cni to the directory of CNI plugins, under the name "usernet" that
runtimes look for, and writes a network configuration. The plugin is "loopback",
too, where there is none: containerd needs one. Done twice this changes nothing
the second time. Files that are not usernet's own are left alone, and so
is a configuration that was edited, unless --force is given.

` + fmt.Sprintf(dropInHelp, a.dropInDir()),
		Example: `  usernet cni install
  usernet cni install --bin-dir /usr/lib/cni --conf-dir /etc/cni/net.d
  usernet cni install --drop-in`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			i.app, i.force = a, force
			if dropIn {
				if err := conflictingFlags(cmd); err != nil {
					return usageError(cmd, err)
				}
				if !cmd.Flags().Changed("bin-dir") {
					i.binDir = a.dropInDir()
				}
				return i.installDropIn()
			}
			text, err := a.conflist(&f)
			if err != nil {
				return usageError(cmd, err)
			}
			return i.install(f.name, text)
		},
	}
	f.register(cmd)
	bin, conf := a.cniDirs()
	cmd.Flags().StringVar(&i.binDir, "bin-dir", bin, "`DIR` where runtimes look for plugins")
	cmd.Flags().StringVar(&i.confDir, "conf-dir", conf, "`DIR` where runtimes look for network configurations")
	cmd.Flags().StringVar(&i.plugin, "plugin", "", "`FILE` of the plugin (default usernet-cni beside this program or in $PATH)")
	cmd.Flags().BoolVar(&dropIn, "drop-in", false, "install the names of the reference plugins, and no configuration (default --bin-dir "+a.dropInDir()+")")
	cmd.Flags().BoolVar(&force, "force", false, "replace a configuration of type usernet that was edited, or with --drop-in plugins of these names")
	return cmd
}

// cniDirs are where runtimes look: the system's, and podman's and nerdctl's for
// ordinary users.
func (a *app) cniDirs() (bin, conf string) {
	if os.Geteuid() == 0 {
		return "/opt/cni/bin", "/etc/cni/net.d"
	}
	home := a.getenv("HOME")
	config := a.getenv("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(home, ".config")
	}
	return filepath.Join(home, ".local", "libexec", "cni"), filepath.Join(config, "cni", "net.d")
}

// installer copies the plugin and writes its configuration.
type installer struct {
	*app
	binDir, confDir, plugin string
	force                   bool
}

// install looks at everything before it changes anything, so that it does all
// or nothing.
func (i *installer) install(name string, conflist []byte) error {
	source, err := i.findPlugin()
	if err != nil {
		return err
	}
	plugin, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	pluginPath := filepath.Join(i.binDir, pluginType)
	confPath := filepath.Join(i.confDir, name+".conflist")
	oldPlugin, err := i.judge(pluginPath, plugin, isOwnPlugin)
	if err != nil {
		return err
	}
	oldConf, err := i.judge(confPath, conflist, i.mayReplaceConflist)
	if err != nil {
		return err
	}
	if err := i.write(pluginPath, plugin, oldPlugin, 0o755); err != nil {
		return err
	}
	var made []string
	if oldPlugin == nil {
		made = append(made, pluginPath)
	}
	loopback, err := i.writeLoopback(plugin)
	if err != nil {
		return errors.Join(err, removeAll(made))
	}
	if loopback != "" {
		made = append(made, loopback)
	}
	if err := i.write(confPath, conflist, oldConf, 0o644); err != nil {
		return errors.Join(err, removeAll(made))
	}
	i.warnOfPath()
	return nil
}

// writeLoopback copies the plugin to the name "loopback", by which containerd runs
// one for every pod beside the network's, unless somebody else's is there. A link
// would lead those who copy theirs to that name to the plugin itself. It returns
// what was not there before.
func (i *installer) writeLoopback(plugin []byte) (made string, err error) {
	path := filepath.Join(i.binDir, "loopback")
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		made = path
	case err != nil:
		return "", err
	case !ours(path):
		return "", nil // the reference's is as good
	}
	return made, i.write(path, plugin, old, 0o755)
}

// warnOfPath says when the plugin would not find the daemon's program.
func (i *installer) warnOfPath() {
	if _, err := exec.LookPath("usernet"); err != nil {
		fmt.Fprintf(i.stderr, "usernet: the plugin starts the daemon when it is needed, but finds no \"usernet\" in $PATH: "+
			"put this program there, or run it: usernet daemon\n")
	}
}

// findPlugin finds the executable that is to be copied.
func (i *installer) findPlugin() (string, error) {
	if i.plugin != "" {
		if err := isOwnPlugin(i.plugin, nil); err != nil {
			return "", err
		}
		return i.plugin, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "usernet-cni")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	if path, err := exec.LookPath("usernet-cni"); err == nil {
		return path, nil
	}
	return "", errors.New("usernet-cni is neither beside this program nor in $PATH; build it (make build, or go build ./cmd/usernet-cni) and name it with --plugin")
}

// judge returns what is at path now, nil if nothing is, or says why it may not
// become want.
func (i *installer) judge(path string, want []byte, mayReplace func(path string, old []byte) error) ([]byte, error) {
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case bytes.Equal(old, want):
		return old, nil
	}
	return old, mayReplace(path, old)
}

// isOwnPlugin holds that an executable is usernet's plugin of some version.
func isOwnPlugin(path string, _ []byte) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil || info.Path != pluginPackage {
		return fmt.Errorf("%s is not usernet's plugin; move it away, or choose another --bin-dir", path)
	}
	return nil
}

// ours reports whether an executable is usernet's plugin.
func ours(path string) bool { return isOwnPlugin(path, nil) == nil }

func (i *installer) mayReplaceConflist(path string, old []byte) error {
	var list conflist
	if err := json.Unmarshal(old, &list); err != nil || len(list.Plugins) == 0 || list.Plugins[0].Type != pluginType {
		return fmt.Errorf("%s is not a configuration of type usernet; choose another --name or --conf-dir", path)
	}
	if !i.force {
		return fmt.Errorf("%s holds another configuration of type usernet; --force replaces it, --name writes one beside it", path)
	}
	return nil
}

// write puts data at path whole or not at all, and says what it did.
func (i *installer) write(path string, data, old []byte, mode fs.FileMode) error {
	if old != nil && bytes.Equal(old, data) {
		fmt.Fprintf(i.stdout, "unchanged  %s\n", path)
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".usernet-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	did := "wrote"
	if old != nil {
		did = "replaced"
	}
	fmt.Fprintf(i.stdout, "%s%s%s\n", did, strings.Repeat(" ", 11-len(did)), path)
	return nil
}
