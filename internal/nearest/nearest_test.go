package nearest

import (
	"strings"
	"testing"
)

func TestWord(t *testing.T) {
	known := []string{"hostServices", "mtu", "name", "subnets"}
	for word, want := range map[string]string{
		"hostservices": "hostServices", "hostServies": "hostServices", "mt": "mtu", "MTU": "mtu",
		"subnest": "subnets", "mtu": "mtu", "vlan": "", "n": "", "": "", "sbnts": "subnets",
		strings.Repeat("x", 100): "",
	} {
		if got := Word(word, known); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}
