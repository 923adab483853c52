package plugin

import (
	"context"
	"errors"
	"fmt"

	"github.com/usernet/usernet/internal/control"
)

// gc carries out GC: the links of this network that this runtime made and does
// not list any more are removed, with their leases and publications, and so are
// leases without a link. No list,
// null and an empty list are the same: nothing is valid (cnitool sends none,
// CRI-O with no pods sends null). It goes on past what fails.
func (i *invocation) gc(ctx context.Context) error {
	request := control.GCRequest{Valid: []control.LinkName{}, Owner: i.caller().name}
	for _, a := range i.conf.Valid {
		request.Valid = append(request.Valid, control.LinkName{Container: a.ContainerID, IfName: a.IfName})
	}
	err := i.withDaemon(ctx, func(ctx context.Context) error {
		_, err := i.client.GC(ctx, i.conf.Name, request)
		return err
	})
	if err != nil {
		err = fmt.Errorf("collect the garbage of network %s: %w", i.conf.Name, err)
	}
	d, ierr := i.ipam()
	if ierr == nil {
		ierr = d.run(ctx, cmdGC)
	}
	return errors.Join(err, ierr)
}
