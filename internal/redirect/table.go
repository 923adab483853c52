package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// open makes the table. It is empty for a moment, and nobody's but the socket's
// from its first.
func open(name string, rules []Rule) (*os.File, error) {
	if err := check(rules); err != nil {
		return nil, err
	}
	c, socket, err := dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.CloseLasting() }() // the duplicate goes on
	if err := createOwned(socket, name); err != nil {
		return nil, err
	}
	if err := fill(c, &nftables.Table{Name: name, Family: nftables.TableFamilyINet}, rules); err != nil {
		return nil, err
	}
	return duplicate(socket, name)
}

// dial opens a netlink socket. The library closes it with CloseLasting.
func dial() (c *nftables.Conn, socket *netlink.Conn, err error) {
	c, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
		socket = s
		return nil
	}))
	return c, socket, err
}

// tableOwner is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h.
const tableOwner = 2

// createOwned creates the table with the flag that makes it the socket's. The
// library leaves flags out.
func createOwned(socket *netlink.Conn, name string) error {
	attrs := netlink.NewAttributeEncoder()
	attrs.ByteOrder = binary.BigEndian
	attrs.String(unix.NFTA_TABLE_NAME, name)
	attrs.Uint32(unix.NFTA_TABLE_FLAGS, tableOwner)
	body, err := attrs.Encode()
	if err != nil {
		return fmt.Errorf("encode table %s: %w", name, err)
	}
	const newTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE
	// struct nfgenmsg: family, version, resource (the subsystem, around a batch)
	inet, batch := []byte{unix.NFPROTO_INET, 0, 0, 0}, []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	_, err = socket.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: batch},
		{Header: netlink.Header{Type: newTable, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl}, Data: append(inet, body...)},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: batch},
	})
	if err == nil {
		_, err = socket.Receive()
	}
	if err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	return nil
}

// fill puts chains, maps and rules into the table in one transaction.
func fill(c *nftables.Conn, table *nftables.Table, rules []Rule) error {
	var chains []*nftables.Chain
	for name, hook := range map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, // from elsewhere
		"output":     nftables.ChainHookOutput,     // from this host
	} {
		chains = append(chains, c.AddChain(&nftables.Chain{
			Table: table, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest,
		}))
	}
	for _, k := range kinds {
		var elements []nftables.SetElement
		for _, r := range rules {
			if k.of(r) {
				elements = append(elements, nftables.SetElement{Key: k.key(r), Val: binary.BigEndian.AppendUint16(nil, r.Port)})
			}
		}
		if len(elements) == 0 {
			continue
		}
		set, err := k.set(table)
		if err != nil {
			return err
		}
		if err := addMap(c, set, elements); err != nil {
			return fmt.Errorf("map %s: %w", k.name, err)
		}
		for _, chain := range chains {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: k.rule(set)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("fill table: %w", err)
	}
	return nil
}

// addMap adds a map with its elements, so many at a time that their attribute
// stays below the 64 KiB that netlink can count.
func addMap(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	if err := c.AddSet(set, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(elements, 256) {
		if err := c.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

// duplicate returns a descriptor of the netlink socket that outlives it.
func duplicate(socket *netlink.Conn, name string) (*os.File, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("duplicate the table's socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "nf_tables "+name), nil
}

// set returns the kind's map, without elements.
func (k kind) set(table *nftables.Table) (*nftables.Set, error) {
	types := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	switch {
	case k.specific && k.v4:
		types = append([]nftables.SetDatatype{nftables.TypeIPAddr}, types...)
	case k.specific:
		types = append([]nftables.SetDatatype{nftables.TypeIP6Addr}, types...)
	}
	key, err := nftables.ConcatSetType(types...)
	if err != nil {
		return nil, err
	}
	return &nftables.Set{
		Table: table, Name: k.name, IsMap: true, Concatenation: true,
		KeyType: key, DataType: nftables.TypeInetService,
	}, nil
}

// key is a rule's key in the kind's map: the parts of the concatenation, each
// filled up to 32 bits.
func (k kind) key(r Rule) []byte {
	var key []byte
	if k.specific {
		key = r.Host.Addr().AsSlice()
	}
	key = append(key, protocols[r.Proto], 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(key, r.Host.Port()), 0, 0)
}

// parse is the inverse of key.
func (k kind) parse(e nftables.SetElement) (Rule, error) {
	host := netip.IPv6Unspecified()
	if k.v4 {
		host = netip.IPv4Unspecified()
	}
	rest := e.Key
	if size := host.BitLen() / 8; k.specific && len(rest) > size {
		host, _ = netip.AddrFromSlice(rest[:size])
		rest = rest[size:]
	}
	if len(rest) < 6 || len(e.Val) < 2 {
		return Rule{}, fmt.Errorf("map %s: element %x : %x is none of ours", k.name, e.Key, e.Val)
	}
	for proto, number := range protocols {
		if number == rest[0] {
			return Rule{proto, netip.AddrPortFrom(host, binary.BigEndian.Uint16(rest[4:])), binary.BigEndian.Uint16(e.Val)}, nil
		}
	}
	return Rule{}, fmt.Errorf("map %s: element of protocol %d is none of ours", k.name, rest[0])
}

// Where headers have what the rules look at, in bytes.
const (
	offsetDst4 = 16 // RFC 791 §3.1
	offsetDst6 = 24 // RFC 8200 §3
	offsetPort = 2  // RFC 9293 §3.1, RFC 768: the destination's
)

// rule is the rule that looks destinations up in the kind's map. The parts of
// the key go to 32-bit registers in a row.
func (k kind) rule(set *nftables.Set) []expr.Any {
	family, offset, size := byte(unix.NFPROTO_IPV6), uint32(offsetDst6), uint32(16)
	if k.v4 {
		family, offset, size = unix.NFPROTO_IPV4, offsetDst4, 4
	}
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{family}},
	}
	register := uint32(unix.NFT_REG32_00)
	if k.specific {
		exprs = append(exprs, &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
		register += size / 4
	} else {
		exprs = append(exprs,
			&expr.Fib{Register: unix.NFT_REG_1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
	}
	return append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: offsetPort, Len: 2},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG_1, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		// Without an address to change to, the packet's own stays.
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_INET, RegProtoMin: unix.NFT_REG_1, Specified: true},
	)
}
