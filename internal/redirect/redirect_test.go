package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/nstest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
	}
	nstest.Main(m)
}

func rule(proto, host string, port uint16) Rule {
	return Rule{Proto: proto, Host: netip.MustParseAddrPort(host), Port: port}
}

func TestOverlaps(t *testing.T) {
	a := rule("tcp", "127.0.0.1:80", 1)
	for other, want := range map[Rule]bool{
		a:                                 true,
		rule("tcp", "0.0.0.0:80", 2):      true,
		rule("tcp", "127.0.0.2:80", 2):    false,
		rule("tcp", "127.0.0.1:81", 2):    false,
		rule("udp", "127.0.0.1:80", 2):    false,
		rule("tcp", "[::]:80", 2):         false, // IPv6 alone
		rule("tcp", "[fd00::1]:80", 2):    false,
		rule("tcp", "192.168.1.1:80", 99): false,
	} {
		if a.Overlaps(other) != want || other.Overlaps(a) != want {
			t.Errorf("%v and %v overlap: want %v", a, other, want)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, rules := range [][]Rule{
		nil,
		{rule("sctp", "127.0.0.1:80", 1)},
		{rule("tcp", "127.0.0.1:0", 1)},
		{rule("tcp", "127.0.0.1:80", 0)},
		{rule("tcp", "[::ffff:127.0.0.1]:80", 1)},
		{{Proto: "tcp", Port: 1}},
		{rule("tcp", "127.0.0.1:80", 1), rule("tcp", "0.0.0.0:80", 2)},
	} {
		if check(rules) == nil {
			t.Errorf("%v is taken", rules)
		}
	}
}

// Every kind of key can be read back.
func TestKeys(t *testing.T) {
	for _, r := range allKinds() {
		n := slices.IndexFunc(kinds, func(k kind) bool { return k.of(r) })
		e := element(kinds[n], r)
		if got, err := kinds[n].parse(e); got != r || err != nil {
			t.Errorf("%v is read as %v, %v", r, got, err)
		}
		for cut := range len(e.Key) - 2 { // the last two bytes fill up
			short := e
			short.Key = e.Key[:cut]
			if got, err := kinds[n].parse(short); err == nil && got == r {
				t.Errorf("%v is read from %d bytes of %d", r, cut, len(e.Key))
			}
		}
	}
}

func allKinds() []Rule {
	var all []Rule
	for n, host := range []string{"127.0.0.1:8080", "[::1]:8080", "0.0.0.0:8081", "[::]:8081"} {
		all = append(all, rule("tcp", host, uint16(40000+n)), rule("udp", host, uint16(41000+n)))
	}
	return all
}

func TestTableName(t *testing.T) {
	const owner = "web/c1/eth0"
	a, b := tableName(owner), tableName(owner)
	if a == b || !strings.HasPrefix(a, "usernet/web/c1/eth0/") {
		t.Errorf("names %s and %s", a, b)
	}
	if n := len(tableName(strings.Repeat("x", 300))); n > 255 {
		t.Errorf("a name of %d bytes", n)
	}
}

func TestExplain(t *testing.T) {
	for cause, words := range map[error]string{
		unix.EPERM:           "CAP_NET_ADMIN",
		unix.EPROTONOSUPPORT: "nf_tables with NAT",
		unix.ENOENT:          "nf_tables with NAT",
		unix.EOPNOTSUPP:      "Linux 5.12",
		unix.EINVAL:          "Linux 5.12",
	} {
		err := explain(fmt.Errorf("sent: %w", cause))
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, cause) || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: got %v, want %q", cause, err, words)
		}
	}
	if err := explain(os.ErrClosed); errors.Is(err, ErrUnavailable) {
		t.Errorf("a bug is called unavailable: %v", err)
	}
	if err := explain(unix.E2BIG); errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "1024") {
		t.Errorf("got %v", err)
	}
}
