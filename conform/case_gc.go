package conform

import (
	"encoding/json"
	"errors"
	"fmt"
)

// The keys of GC's list. The second is what libcni 1.1 to 1.3 sends as well, by
// mistake.
const (
	validKey  = "cni.dev/valid-attachments"
	legacyKey = "cni.dev/attachments"
)

func gcCases() []definition {
	return []definition{
		{name: "GC/keeps-valid", level: Must, section: sectionGC, since: latest,
			summary: "attachments that the list has stay as they are", run: gcKeeps(validKey)},
		{name: "GC/keeps-valid/both-keys", level: Must, section: "§2 GC; libcni sends both keys", since: latest,
			summary: "the list under both of libcni's keys keeps what it has", run: gcKeeps(validKey, legacyKey)},
		{name: "GC/keeps-valid/legacy-key", level: May, section: "libcni 1.1.0 sent the list under cni.dev/attachments", since: latest,
			summary: "the list under the misspelt key alone keeps what it has", run: gcKeeps(legacyKey)},
		{name: "GC/keeps-one-of-two", level: Must, section: sectionGC, since: latest,
			summary: "with one of a container's two interfaces in the list, that one stays", run: gcOneInterface},
		{name: "GC/removes-stale", level: Should, section: sectionGC, since: latest,
			summary: "what the list does not have is removed", run: gcRemoves(func(keep *attachment) object { return object{validKey: valid(keep)} })},
		{name: "GC/removes-stale/empty", level: Should, section: sectionGC, since: latest,
			summary: "with an empty list everything of the network is removed", run: gcRemoves(func(*attachment) object { return object{validKey: valid()} })},
		{name: "GC/removes-stale/null", level: Should, section: "§2 GC; CRI-O without pods sends null", since: latest,
			summary: "null is an empty list", run: gcRemoves(func(*attachment) object { return object{validKey: json.RawMessage("null")} })},
		{name: "GC/removes-stale/absent", level: Should, section: "§2 GC; cnitool sends no list", since: latest,
			summary: "no list is an empty one", run: gcRemoves(func(*attachment) object { return object{} })},
		{name: "GC/removes-stale/dead", level: Should, section: "§2 GC (the namespace may have been deleted)", since: latest,
			summary: "GC takes away what a container without DEL left on the host", run: gcDead},
		{name: "GC/spares-other-network", level: Must, section: "§2 GC (the list is of attachments to this network)", since: latest,
			summary: "attachments of another network stay", run: gcOther},
		{name: "GC/nothing-to-do", level: Must, section: sectionGC, since: latest,
			summary: "GC succeeds again and again, and where nothing is left", run: gcIdle},
		{name: "GC/unknown-attachments", level: Must, section: sectionGC, since: latest,
			summary: "attachments in the list that the plugin does not know are no error", run: gcUnknown},
		{name: "GC/prints-nothing", level: Must, section: "§2 GC (no output on success)", since: latest,
			summary: "a GC that succeeds prints nothing",
			run: func(t *trial) error {
				return t.gc(object{validKey: valid()}).expect((*Call).silent)
			}},
		{name: "GC/then-DEL", level: Must, section: "§2 GC (no substitute for DEL)", since: latest,
			summary: "DEL succeeds for what GC has removed, and ADD after it", run: gcThenDel},
		{name: "GC/bad-list", level: Should, section: "§5 Error", since: latest,
			summary: "a list that cannot be understood is an error, and nothing is removed", run: gcBadList},
		{name: "GC/before-1.1.0", level: Must, section: "§2 GC (since 1.1.0)", until: "1.0.0",
			summary: "GC fails in a version that does not have it", run: tooEarly("GC")},
		{name: "GC/before-1.1.0/code", level: Should, section: "§5 Error", until: "1.0.0", once: true,
			summary: "the error is 1, incompatible version (or 4, as the version's own unknown CNI_COMMAND)", run: tooEarly("GC", 1, 4)},
	}
}

// gc makes a GC with more keys in its configuration.
func (t *trial) gc(more object) *request { return t.request("GC", nil).set(more) }

// valid is the list of attachments that a GC keeps.
func valid(all ...*attachment) []object {
	list := []object{}
	for _, a := range all {
		list = append(list, object{"containerID": a.c.id, "ifname": a.ifName})
	}
	return list
}

// pair adds two containers.
func (t *trial) pair() (a, b *attachment, err error) {
	if a, err = t.attached(); err != nil {
		return nil, nil, err
	}
	b, err = t.attached()
	return a, b, err
}

func gcKeeps(keys ...string) func(t *trial) error {
	return func(t *trial) error {
		a, b, err := t.pair()
		if err != nil {
			return err
		}
		lists := object{}
		for _, key := range keys {
			lists[key] = valid(a, b)
		}
		if err := t.gc(lists).expect((*Call).succeeded); err != nil {
			return err
		}
		return errors.Join(t.alive(a), t.alive(b))
	}
}

func gcOneInterface(t *trial) error {
	_, second, err := t.pairInOne()
	if err != nil {
		return err
	}
	if err := t.gc(object{validKey: valid(second)}).expect((*Call).succeeded); err != nil {
		return err
	}
	return t.alive(second) // whether the first is removed, other cases look at
}

// gcRemoves makes a case of a GC after which an attachment that its list does
// not have is to be found removed: its interface is gone, or CHECK finds fault
// with it. Those in the list stay.
func gcRemoves(list func(keep *attachment) object) func(t *trial) error {
	return func(t *trial) error {
		keep, stale, err := t.pair()
		if err != nil {
			return err
		}
		keys := list(keep)
		if err := t.gc(keys).expect((*Call).succeeded); err != nil {
			return err
		}
		if listed, _ := keys[validKey].([]object); len(listed) > 0 {
			if err := t.alive(keep); err != nil {
				return err
			}
		}
		refused := t.request("CHECK", stale).expect((*Call).refused)
		if refused == nil || t.settled(stale.gone) == nil {
			return nil
		}
		return errors.New("the attachment that the list does not have is as before: its interface is there, and CHECK finds no fault")
	}
}

// gcDead leaves an attachment whose namespace has ended without DEL.
func gcDead(t *trial) error {
	return t.clean(func() error {
		a, err := t.attached()
		if err != nil {
			return err
		}
		a.c.destroy()
		return t.gc(object{validKey: valid()}).expect((*Call).succeeded)
	})
}

func gcOther(t *trial) error {
	foreign, err := t.attachedOther()
	if err != nil {
		return err
	}
	own, err := t.attached()
	if err != nil {
		return err
	}
	if err := t.gc(object{validKey: valid()}).expect((*Call).succeeded); err != nil {
		return err
	}
	return errors.Join(t.alive(foreign), t.del(own))
}

func gcIdle(t *trial) error {
	for range 3 {
		if err := t.gc(object{validKey: valid()}).expect((*Call).succeeded); err != nil {
			return err
		}
	}
	return nil
}

func gcUnknown(t *trial) error {
	a, err := t.attached()
	if err != nil {
		return err
	}
	list := append(valid(a), object{"containerID": "conform-nobody", "ifname": "eth9"})
	if err := t.gc(object{validKey: list}).expect((*Call).succeeded); err != nil {
		return err
	}
	return t.alive(a)
}

func gcThenDel(t *trial) error {
	a, err := t.attached()
	if err != nil {
		return err
	}
	if err := t.gc(object{validKey: valid()}).expect((*Call).succeeded); err != nil {
		return err
	}
	if err := t.del(a); err != nil {
		return err
	}
	if err := t.settled(a.gone); err != nil {
		return err
	}
	res, err := t.add(a)
	if err != nil {
		return err
	}
	return a.has(res)
}

func gcBadList(t *trial) error {
	a, err := t.attached()
	if err != nil {
		return err
	}
	for _, list := range []any{"all", 7, []any{"conform"}, object{"containerID": a.c.id}} {
		if err := t.gc(object{validKey: list}).expect((*Call).refused); err != nil {
			return fmt.Errorf("%s = %s: %w", validKey, compact(list), err)
		}
	}
	return t.alive(a)
}
