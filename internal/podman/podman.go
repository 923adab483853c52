package podman

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
)

// Reservation says whether root's podman listens on the ports that it publishes
// itself, once the network is set up, so that nobody else takes them.
type Reservation struct {
	On bool
	// File is the configuration that says so; empty: podman's default.
	File string
}

// systemFiles are root's configuration, later ones beating earlier ones.
var systemFiles = []string{
	"usr/share/containers/containers.conf",
	"etc/containers/containers.conf",
	"etc/containers/containers.conf.d/*.conf",
}

// ReadReservation reads the files that root's podman reads with an environment,
// in the file system root ("/" but for tests). Like podman it stops at a file
// that cannot be read as TOML.
func ReadReservation(root fs.FS, getenv func(string) string) (Reservation, error) {
	r := Reservation{On: true}
	err := read(root, getenv, func(file string, c *conf) {
		if c.Engine.Reserve != nil {
			r = Reservation{*c.Engine.Reserve, "/" + file}
		}
	})
	return r, err
}

// ReadPluginDirs reads where podman looks for CNI plugins, as ReadReservation
// reads; nil: where it does by default.
func ReadPluginDirs(root fs.FS, getenv func(string) string) ([]string, error) {
	var dirs []string
	err := read(root, getenv, func(_ string, c *conf) {
		if c.Network.PluginDirs != nil {
			dirs = c.Network.PluginDirs
		}
	})
	return dirs, err
}

// conf is what is of interest in one file.
type conf struct {
	Engine struct {
		Reserve *bool `toml:"enable_port_reservation"`
	} `toml:"engine"`
	Network struct {
		PluginDirs []string `toml:"cni_plugin_dirs"`
	} `toml:"network"`
}

// read gives each file that is there to see, in order.
func read(root fs.FS, getenv func(string) string, see func(file string, c *conf)) error {
	files, err := list(root, getenv)
	if err != nil {
		return err
	}
	for _, file := range files {
		var c conf
		_, err := toml.DecodeFS(root, file, &c)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read podman's configuration /%s: %w", file, err)
		}
		see(file, &c)
	}
	return nil
}

// list returns the files in the order in which they are read.
func list(root fs.FS, getenv func(string) string) ([]string, error) {
	var files []string
	if only := getenv("CONTAINERS_CONF"); only != "" {
		files = append(files, inRoot(only))
	} else {
		for _, pattern := range systemFiles {
			found, err := fs.Glob(root, pattern) // sorted
			if err != nil {
				return nil, err
			}
			files = append(files, found...)
		}
	}
	if last := getenv("CONTAINERS_CONF_OVERRIDE"); last != "" {
		files = append(files, inRoot(last))
	}
	return files, nil
}

// inRoot makes a name of fs.FS out of a path.
func inRoot(file string) string {
	return path.Clean(strings.TrimPrefix(filepath.ToSlash(filepath.Clean(file)), "/"))
}
