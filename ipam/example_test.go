package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/usernet/usernet/ipam"
)

func Example() {
	ctx := context.Background()
	pool, err := ipam.Open(ctx, ipam.Config{Sets: [][]ipam.Range{
		{{Subnet: netip.MustParsePrefix("10.88.0.0/16")}},
		{{Subnet: netip.MustParsePrefix("fd00:88::/64")}},
	}}, ipam.NewMemStore())
	if err != nil {
		fmt.Println(err)
		return
	}

	web, err := pool.Acquire(ctx, ipam.Request{Owner: "web/eth0"})
	fmt.Println(web.Addrs, web.Gateways, err)

	_, err = pool.Acquire(ctx, ipam.Request{Owner: "db/eth0", Want: []netip.Addr{netip.MustParseAddr("10.88.0.2")}})
	fmt.Println(err, errors.Is(err, ipam.ErrInUse))

	fmt.Println(pool.Release(ctx, "web/eth0"))
	// Output:
	// [10.88.0.2/16 fd00:88::2/64] [10.88.0.1 fd00:88::1] <nil>
	// acquire for "db/eth0": 10.88.0.2: address in use by "web/eth0" true
	// <nil>
}
