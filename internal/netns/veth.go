package netns

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// AddVeth joins two namespaces by a virtual cable with an end called nameA in a
// and one called nameB in b. Both ends are down and without addresses; [Configure]
// gives them. The cable goes with either namespace.
func AddVeth(a, b *Handle, nameA, nameB string) error {
	err := a.Do(func() error {
		return b.control(func(fd int) error {
			return netlink.LinkAdd(&netlink.Veth{
				LinkAttrs:     netlink.LinkAttrs{Name: nameA},
				PeerName:      nameB,
				PeerNamespace: netlink.NsFd(fd),
			})
		})
	})
	if err != nil {
		return fmt.Errorf("join %s and %s by a cable: %w", nameA, nameB, err)
	}
	return nil
}
