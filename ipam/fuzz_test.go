package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"testing"
)

// FuzzConfig gives any configuration to a pool and takes addresses from it.
// Property: it is refused, or all that is given out lies within the ranges, is
// no gateway, network or broadcast address, and is given out once, until
// exactly as many addresses as the pool says it has are gone.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`[[{"subnet":"10.88.0.0/16"}],[{"subnet":"fd00:88::/64"}]]`,
		`[[{"subnet":"10.0.0.0/30"},{"subnet":"10.0.1.0/29","rangeStart":"10.0.1.0","rangeEnd":"10.0.1.7","gateway":"10.0.1.3"}]]`,
		`[[{"subnet":"fd00::/126","rangeStart":"fd00::2"}],[{"subnet":"fd00::/126","rangeEnd":"fd00::1","gateway":"fd00::3"}]]`,
		`[[{"subnet":"::ffff:10.0.0.0/125"}]]`,
		`[[{"subnet":"0.0.0.0/0","rangeStart":"255.255.255.250"}],[{"subnet":"::/0","rangeStart":"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0"}]]`,
		`[[{"subnet":"10.0.0.0/31"}],[],[{}],[{"subnet":"10.0.0.9/24","gateway":"fe80::1%eth0"}]]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var sets [][]Range
		if json.Unmarshal(b, &sets) != nil {
			return
		}
		p, err := Open(t.Context(), Config{Sets: sets}, NewMemStore())
		if err != nil {
			return
		}
		checkPool(t, p)
	})
}

// checkPool takes addresses until the smallest set is empty, or many.
func checkPool(t *testing.T, p *Pool) {
	least := uint64(math.MaxUint64)
	for _, u := range p.Usage() {
		least = min(least, u.Size)
	}
	seen := make(map[netip.Addr]bool)
	for i := range uint64(100) {
		l, err := p.Acquire(t.Context(), Request{Owner: Owner(fmt.Sprint(i))})
		if i == least {
			if !errors.Is(err, ErrExhausted) {
				t.Fatalf("%d addresses are gone, the next: %v, %v", least, l.Addrs, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for j, a := range l.Addrs {
			r := p.sets[j][rangeOf(p.sets[j], a.Addr())]
			first, last := usable(r.Subnet)
			switch {
			case seen[a.Addr()]:
				t.Fatalf("%s twice", a)
			case !r.Subnet.Contains(a.Addr()), a.Addr().Less(first), last.Less(a.Addr()), a.Addr() == l.Gateways[j]:
				t.Fatalf("%s of %+v", a, r)
			}
			seen[a.Addr()] = true
		}
		for _, g := range p.Gateways() {
			if seen[g.Addr()] {
				t.Fatalf("gateway %s was given out", g)
			}
		}
	}
}

// FuzzArithmetic compares the address arithmetic with big integers.
func FuzzArithmetic(f *testing.F) {
	for _, p := range []string{"10.0.0.0/8", "10.0.0.1/31", "0.0.0.0/0", "255.255.255.255/32", "::/0", "fd00::/64", "fd00::/63", "ffff::/128"} {
		prefix := netip.MustParsePrefix(p)
		f.Add(prefix.Addr().AsSlice(), prefix.Bits(), uint64(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, length int, step uint64) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		p, err := a.Prefix(length)
		if err != nil {
			return
		}
		host := uint(a.BitLen() - length)
		size := new(big.Int).Lsh(big.NewInt(1), host)
		last := new(big.Int).Add(number(p.Addr()), size)
		last.Sub(last, big.NewInt(1))
		if got := lastAddr(p); number(got).Cmp(last) != 0 || got.BitLen() != a.BitLen() {
			t.Errorf("last address of %s: %s", p, got)
		}
		want := uint64(math.MaxUint64)
		if size.IsUint64() {
			want = size.Uint64()
		}
		if got := count(p.Addr(), lastAddr(p)); got != want {
			t.Errorf("%s has %d addresses, want %d", p, got, want)
		}
		if got := count(a, a); got != 1 {
			t.Errorf("%s-%s has %d addresses", a, a, got)
		}
		end := new(big.Int).Add(number(a), new(big.Int).SetUint64(step%math.MaxUint64))
		if raw := end.Bytes(); len(raw) <= len(b) {
			e, _ := netip.AddrFromSlice(end.FillBytes(make([]byte, len(b))))
			if got := count(a, e); got != step%math.MaxUint64+1 {
				t.Errorf("%s-%s has %d addresses, want %d", a, e, got, step%math.MaxUint64+1)
			}
		}
	})
}

func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }
