package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/plugin"
)

// dropInHelp teaches how runtimes come to use the names. %[1]s is the directory.
const dropInHelp = `With --drop-in it installs the names of the reference plugins instead (bridge,
portmap, firewall, tuning, …) in a directory of their own, %[1]s,
and writes no configuration: networks that podman and nerdctl create name those
plugins, and run on usernet as soon as the directory comes first on the runtime's
plugin path:

  podman      in containers.conf, below [network]:
                network_backend = "cni"
                cni_plugin_dirs = ["%[1]s", "/usr/lib/cni"]
                default_subnet_pools and the rest stay as they are
  nerdctl     nerdctl --cni-path %[1]s …, or in nerdctl.toml:
                cni_path = "%[1]s"
  containerd  in config.toml, below [plugins."io.containerd.grpc.v1.cri".cni]:
                bin_dir = "%[1]s"   (bin_dirs = [ … ] since 2.1)
  buildkit    buildkitd --oci-cni-binary-dir=%[1]s
  CRI-O       in crio.conf, below [crio.network]: plugin_dirs = ["%[1]s", …]

Containers that run keep the network they have; remove and create them anew.
Reference plugins in the directory are left alone, unless --force is given.`

// dropInDir is where --drop-in installs when nothing else is said: no
// runtime looks there by itself.
func (a *app) dropInDir() string {
	if os.Geteuid() == 0 {
		return "/usr/libexec/usernet/cni"
	}
	return filepath.Join(a.getenv("HOME"), ".local", "libexec", "usernet", "cni")
}

// conflictingFlags are those of the conflist, which --drop-in does not write.
func conflictingFlags(cmd *cobra.Command) error {
	for _, name := range []string{"name", "subnet", "device", "mtu", "internal", "host-access", "host-forward", "conf-dir"} {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s is for the configuration that is written without --drop-in; with it the runtime writes its own", name)
		}
	}
	return nil
}

// installDropIn copies the plugin and makes a link to it for each name. It
// looks at everything before it changes anything, and takes back what it did
// when it fails.
func (i *installer) installDropIn() error {
	source, err := i.findPlugin()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	main := filepath.Join(i.binDir, pluginType)
	old, err := i.judge(main, text, isOwnPlugin)
	if err != nil {
		return err
	}
	for _, name := range plugin.DropInNames {
		if err := i.judgeName(filepath.Join(i.binDir, name)); err != nil {
			return err
		}
	}
	if err := i.write(main, text, old, 0o755); err != nil {
		return err
	}
	var made []string
	if old == nil {
		made = append(made, main)
	}
	for _, name := range plugin.DropInNames {
		fresh, err := i.link(filepath.Join(i.binDir, name))
		if err != nil {
			return errors.Join(err, removeAll(made))
		}
		if fresh {
			made = append(made, filepath.Join(i.binDir, name))
		}
	}
	i.warnOfPath()
	return nil
}

func removeAll(paths []string) error {
	var errs []error
	for _, p := range paths {
		errs = append(errs, os.Remove(p))
	}
	return errors.Join(errs...)
}

// judgeName says why a name may not become ours.
func (i *installer) judgeName(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) || i.force {
		return nil
	}
	if target, err := os.Readlink(path); err == nil && target == pluginType {
		return nil
	}
	if err := isOwnPlugin(path, nil); err != nil {
		return fmt.Errorf("%w, or replace it with --force", err)
	}
	return nil
}

// link makes path a link to the plugin beside it, and says what it did. fresh
// reports that nothing was there before.
func (i *installer) link(path string) (fresh bool, err error) {
	if target, err := os.Readlink(path); err == nil && target == pluginType {
		fmt.Fprintf(i.stdout, "unchanged  %s\n", path)
		return false, nil
	}
	did := "replaced"
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		did, fresh = "linked", true
	}
	temp := filepath.Join(filepath.Dir(path), ".usernet-"+filepath.Base(path))
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(pluginType, temp); err != nil {
		return false, err
	}
	if err := os.Rename(temp, path); err != nil {
		return false, errors.Join(err, os.Remove(temp))
	}
	fmt.Fprintf(i.stdout, "%s%s%s\n", did, strings.Repeat(" ", 11-len(did)), path)
	return fresh, nil
}
