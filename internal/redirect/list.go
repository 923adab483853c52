package redirect

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table is one table as the kernel has it.
type Table struct {
	// Owner as Open was told, or its SHA-256 where that was too long.
	Owner string
	Rules []Rule // sorted by port, address and protocol
}

// Of reports whether the table is an owner's.
func (t Table) Of(owner string) bool { return t.Owner == ownerName(owner) }

// List returns the tables of the current network namespace. Errors match
// [ErrUnavailable] where there can be none.
func List() ([]Table, error) {
	c, socket, err := dial()
	if err != nil {
		return nil, fmt.Errorf("list redirected ports: %w", explain(err))
	}
	defer func() { _ = c.CloseLasting() }()
	const tries = 20
	for range tries {
		var all []Table
		var changed bool
		all, changed, err = list(c, socket)
		if err == nil && !changed {
			return all, nil
		}
		if !changed {
			return nil, fmt.Errorf("list redirected ports: %w", explain(err))
		}
	}
	return nil, errors.Join(errors.New("list redirected ports: the rules of this host change without end"), err)
}

// list reads the tables once. changed says that rules have changed meanwhile,
// so that neither what was read nor the error means anything.
func list(c *nftables.Conn, socket *netlink.Conn) (all []Table, changed bool, err error) {
	before, err := state(c, socket)
	if err != nil {
		return nil, false, err
	}
	for _, t := range before.tables {
		owner, ok := strings.CutPrefix(t.Name, prefix)
		if !ok {
			continue
		}
		rules, rerr := rulesOf(c, t)
		if rerr != nil {
			err = errors.Join(err, fmt.Errorf("table %s: %w", t.Name, rerr))
			continue
		}
		if len(rules) == 0 {
			continue // it is being made
		}
		owner = owner[:max(strings.LastIndexByte(owner, '/'), 0)]
		all = append(all, Table{Owner: owner, Rules: rules})
	}
	after, aerr := state(c, socket)
	if aerr != nil {
		return nil, false, errors.Join(err, aerr)
	}
	return all, !before.equal(after), err
}

// rulesState tells whether rules have changed: what the kernel counts of
// transactions, and the tables, since it does not count those that go with
// their owner.
type rulesState struct {
	generation []byte
	tables     []*nftables.Table
}

func (s rulesState) equal(o rulesState) bool {
	return bytes.Equal(s.generation, o.generation) &&
		slices.EqualFunc(s.tables, o.tables, func(a, b *nftables.Table) bool { return a.Name == b.Name })
}

func state(c *nftables.Conn, socket *netlink.Conn) (s rulesState, err error) {
	if s.tables, err = c.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		return s, err
	}
	const getGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	reply, err := socket.Execute(netlink.Message{
		Header: netlink.Header{Type: getGeneration, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, 0, 0, 0},
	})
	if err != nil {
		return s, err
	}
	for _, m := range reply {
		s.generation = append(s.generation, m.Data...)
	}
	return s, nil
}

func rulesOf(c *nftables.Conn, t *nftables.Table) ([]Rule, error) {
	sets, err := c.GetSets(t)
	if err != nil {
		return nil, err
	}
	var rules []Rule
	for _, set := range sets {
		n := slices.IndexFunc(kinds, func(k kind) bool { return k.name == set.Name })
		if n < 0 {
			continue
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			r, err := kinds[n].parse(e)
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	slices.SortFunc(rules, compareRules)
	return rules, nil
}
