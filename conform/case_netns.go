package conform

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/usernet/usernet/internal/netns"
)

// netnsCases are ADDs whose namespace is not what it should be. Those of DEL and
// CHECK are with their verbs.
func netnsCases() []definition {
	return []definition{
		{name: "ADD/netns-missing", level: Must, section: sectionAdd,
			summary: "ADD fails when nothing is at CNI_NETNS, and leaves nothing on the host",
			run:     badNetns(func(t *trial) string { return filepath.Join(t.dir, "absent") })},
		{name: "ADD/netns-empty", level: Must, section: "§2 ADD (CNI_NETNS is required)",
			summary: "ADD fails when CNI_NETNS is empty",
			run:     badNetns(func(*trial) string { return "" })},
		{name: "ADD/netns-no-namespace", level: Must, section: sectionAdd, once: true,
			summary: "ADD fails when CNI_NETNS is a file that is no network namespace",
			run:     badNetns(plainFile)},
		{name: "ADD/netns-other-kind", level: Must, section: sectionAdd, once: true,
			summary: "ADD fails when CNI_NETNS is a namespace of another kind",
			run:     badNetns(func(*trial) string { return "/proc/self/ns/uts" })},
		{name: "ADD/netns-directory", level: Must, section: sectionAdd, once: true,
			summary: "ADD fails when CNI_NETNS is a directory",
			run:     badNetns(func(t *trial) string { return t.dir })},
		{name: "ADD/netns-own", level: Should, section: "libcni's skel (error 8)", once: true,
			summary: "ADD fails when CNI_NETNS is the plugin's own namespace, and leaves nothing in it",
			run:     badNetns(func(t *trial) string { return t.hostPath })},
		{name: "ADD/netns-destroyed", level: Must, section: sectionAdd, once: true,
			summary: "ADD fails when the container's namespace is gone already, and DEL after it succeeds",
			run: func(t *trial) error {
				a, err := t.fresh()
				if err != nil {
					return err
				}
				a.c.destroy()
				if err := t.request("ADD", a).expect((*Call).refused); err != nil {
					return err
				}
				return t.del(a)
			}},
		{name: "ADD/same-id-elsewhere", level: Should, section: "§3 Attachment Parameters", once: true,
			summary: "the same container ID with another namespace and interface name is another attachment",
			run:     addElsewhere},
	}
}

// plainFile makes a file and returns its path.
func plainFile(t *trial) string {
	path := filepath.Join(t.dir, "plain")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return ""
	}
	t.undo.Add(func() { os.Remove(path) })
	return path
}

// badNetns makes a case of an ADD that has to fail for its CNI_NETNS, and leave
// nothing.
func badNetns(path func(t *trial) string) func(t *trial) error {
	return func(t *trial) error {
		a, err := t.fresh()
		if err != nil {
			return err
		}
		where := path(t)
		if where == t.hostPath { // what a plugin makes there all the same
			t.undo.Add(func() { _ = t.host.Do(func() error { return netns.DeleteLink(a.ifName) }) })
		}
		return t.clean(func() error {
			failed := t.request("ADD", a).setenv("CNI_NETNS", where).expect((*Call).refused)
			return errors.Join(failed, a.c.untouched())
		})
	}
}

func addElsewhere(t *trial) error {
	first, err := t.attached()
	if err != nil {
		return err
	}
	c, err := t.container()
	if err != nil {
		return err
	}
	c.id = first.c.id
	second := t.in(c, "net1")
	if _, err := t.add(second); err != nil {
		return err
	}
	if err := t.del(second); err != nil {
		return err
	}
	return errors.Join(t.alive(first), second.gone())
}
