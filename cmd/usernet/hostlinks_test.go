package main

import (
	"testing"

	"github.com/usernet/usernet/internal/control"
)

func TestHostLinksAreTold(t *testing.T) {
	got := hostLinks([]control.HostLink{{Netns: 7, IfName: "un-web"}, {Netns: 9, IfName: "cni0", Forward: true}})
	if want := "un-web in net:[7]\ncni0 in net:[9], for others as well"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
