package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/undo"
)

// tuner is an ADD of tuning on its way.
type tuner struct {
	inv  *invocation
	want tuningConf
	undo undo.List // to be run in the container's namespace
}

// set sets everything in the current namespace, or leaves it as it was.
func (t *tuner) set() error {
	for _, step := range []func() error{t.sysctls, t.link} {
		if err := step(); err != nil {
			t.undo.Run()
			return err
		}
	}
	return nil
}

// failing says on standard error that something could not be taken back.
func (t *tuner) failing(what string, err error) {
	if err != nil {
		fmt.Fprintf(t.inv.Stderr, "usernet-cni: undo: %s: %v\n", what, err)
	}
}

func (t *tuner) sysctls() error {
	for _, path := range slices.Sorted(maps.Keys(t.want.Sysctl)) {
		if err := t.inv.done("sysctl " + path); err != nil {
			return err
		}
		old, err := netns.Sysctl(path)
		readable := err == nil
		if errors.Is(err, fs.ErrNotExist) {
			return badValue("sysctl", "net/"+path, "this kernel has no such sysctl in the container's namespace")
		}
		if err := netns.SetSysctl(path, t.want.Sysctl[path]); err != nil {
			return err
		}
		if readable {
			t.undo.Add(func() { t.failing("set back", netns.SetSysctl(path, old)) })
		}
	}
	return nil
}

// link sets the interface's attributes, after what they were is on disk.
func (t *tuner) link() error {
	if !t.want.link() {
		return nil
	}
	link, err := netlink.LinkByName(t.inv.params.IfName)
	if err != nil {
		return fmt.Errorf("look up %s: %w", t.inv.params.IfName, err)
	}
	was := attributes(link, &t.want)
	path := t.inv.backupPath(t.want.DataDir)
	made, err := writeBackup(path, was)
	if err != nil {
		return fail(types.ErrIOFailure, "keep the attributes of %s for DEL: %v", t.inv.params.IfName, err)
	}
	if made {
		t.undo.Add(func() { t.failing("forget", os.Remove(path)) })
	}
	t.undo.Add(func() { t.failing("set back", restoreLink(t.inv.params.IfName, was)) })
	errs := t.want.each(link, func(what string, set func() error) error {
		if err := t.inv.done(what); err != nil {
			return err
		}
		return set()
	})
	return errors.Join(errs...)
}

// backupPath is where the attributes of the container's interface are kept,
// where the reference keeps them.
func (i *invocation) backupPath(dir string) string {
	return filepath.Join(dir, i.params.ContainerID+"_"+i.params.IfName+".json")
}

// writeBackup keeps attributes, unless those of an earlier ADD are kept: these
// are what a DEL has to restore.
func writeBackup(path string, was *tuningConf) (made bool, err error) {
	text, err := json.Marshal(was)
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return false, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, errors.Join(err, os.Remove(path))
	}
	return true, nil
}

// readBackup returns the attributes that are kept, nil if none are. A file that
// cannot be understood, such as one cut short by a crash, holds none.
func readBackup(path string) (*tuningConf, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var was tuningConf
	if json.Unmarshal(text, &was) != nil {
		was = tuningConf{}
	}
	return &was, nil
}
