package main

import (
	"testing"

	"github.com/usernet/usernet/internal/control"
)

func TestHostAccessIsTold(t *testing.T) {
	for _, test := range []struct {
		link     control.Link
		ps, tell string
	}{
		{control.Link{}, "", ""},
		{control.Link{HostNetns: 7, HostIfName: "cni0"}, "cni0", "cni0 in net:[7]"},
		{control.Link{HostNetns: 7}, "missing", "missing in net:[7]"},
	} {
		if ps, tell := hostAccess(&test.link), hostAccessAt(&test.link); ps != test.ps || tell != test.tell {
			t.Errorf("%+v: %q, %q", test, ps, tell)
		}
	}
}

func TestHostLinksAreTold(t *testing.T) {
	got := hostLinks([]control.HostLink{{Netns: 7, IfName: "un-web"}, {Netns: 9, IfName: "cni0", Forward: true}})
	if want := "un-web in net:[7]\ncni0 in net:[9], for others as well"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
