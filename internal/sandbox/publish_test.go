package sandbox

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func publishStrings(list []Publish) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

func TestParsePublish(t *testing.T) {
	for spec, want := range map[string][]string{
		"8080":                        {"127.0.0.1:8080:8080/tcp"},
		"8080:80":                     {"127.0.0.1:8080:80/tcp"},
		"8080:80/tcp":                 {"127.0.0.1:8080:80/tcp"},
		"53/udp":                      {"127.0.0.1:53:53/udp"},
		"127.0.0.1:8080:80":           {"127.0.0.1:8080:80/tcp"},
		"0.0.0.0:8080":                {"0.0.0.0:8080:8080/tcp"},
		"127.0.0.1/8080:80":           {"127.0.0.1:8080:80/tcp"},
		"127.0.0.2/8080:80/udp":       {"127.0.0.2:8080:80/udp"},
		"::1/8080:80":                 {"[::1]:8080:80/tcp"},
		"[::1]/8080:80":               {"[::1]:8080:80/tcp"},
		"[::1]:8080:80":               {"[::1]:8080:80/tcp"},
		"[::]:8080":                   {"[::]:8080:8080/tcp"},
		"[::ffff:192.0.2.1]:8080":     {"192.0.2.1:8080:8080/tcp"},
		"0:80":                        {"127.0.0.1:0:80/tcp"},
		"127.0.0.1::80":               {"127.0.0.1:0:80/tcp"},
		"127.0.0.1:0:80":              {"127.0.0.1:0:80/tcp"},
		"0:80-81":                     {"127.0.0.1:0:80/tcp", "127.0.0.1:0:81/tcp"},
		"8000-8002":                   {"127.0.0.1:8000:8000/tcp", "127.0.0.1:8001:8001/tcp", "127.0.0.1:8002:8002/tcp"},
		"8000-8001:80-81/udp":         {"127.0.0.1:8000:80/udp", "127.0.0.1:8001:81/udp"},
		"22,8080:80,53/udp":           {"127.0.0.1:22:22/tcp", "127.0.0.1:8080:80/tcp", "127.0.0.1:53:53/udp"},
		"192.0.2.1/22,25-26:125-126":  {"192.0.2.1:22:22/tcp", "192.0.2.1:25:125/tcp", "192.0.2.1:26:126/tcp"},
		"[::1]:1:1,0.0.0.0:2:2/udp,3": {"[::1]:1:1/tcp", "0.0.0.0:2:2/udp", "127.0.0.1:3:3/tcp"},
		"80:80,80:80/udp":             {"127.0.0.1:80:80/tcp", "127.0.0.1:80:80/udp"},
	} {
		got, err := ParsePublish(spec)
		if err != nil {
			t.Errorf("%q: %v", spec, err)
			continue
		}
		if diff := cmp.Diff(want, publishStrings(got)); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", spec, diff)
		}
	}
}

func TestParsePublishFaults(t *testing.T) {
	for spec, want := range map[string]string{
		"":                       "no port given",
		",":                      "no port given",
		"80,":                    "no port given",
		"0":                      "port 0",
		"80:0":                   "port 0",
		"0-5:80-85":              "port 0",
		"65536":                  "65536 is out of range",
		"99999999999999999999":   "out of range",
		"http":                   `"http" is not a port`,
		"+80":                    "not a port",
		"80-":                    "not a port",
		"-80":                    "not a port",
		"90-80":                  "write 80-90",
		"8000-8010:80":           "8000-8010 is 11 ports and 80 is 1",
		"80:8000-8010":           "same length",
		"80/sctp":                `protocol "sctp"`,
		"80/TCP":                 `protocol "TCP"`,
		"80/":                    "no protocol behind the slash",
		"localhost:80:80":        `"localhost" is not an address`,
		"::1:80:80":              "in brackets",
		":80":                    "write 0:80",
		"::80":                   "in brackets",
		"fe80::1:80:80:80":       "in brackets",
		"[::1:80":                "not closed",
		"[::1]80":                "comes a colon",
		"[::1]":                  "comes a colon",
		"[fe80::1%eth0]:80":      "zone",
		"[x]:80":                 "not an address",
		"224.0.0.1:80":           "multicast",
		"300.0.0.1:80:80":        "not an address",
		"1:2:3":                  `"2:3" is not a port`,
		"127.0.0.1:":             "a port is missing",
		"80:":                    "a port is missing",
		"auto":                   `"auto" is not understood`,
		"all":                    "not understood",
		"~25":                    "left out",
		"80,80":                  "given twice",
		"80-90,85":               "127.0.0.1:85/tcp is given twice",
		"127.0.0.1/80,::1/80":    "written once",
		"127.0.0.1/[::1]:80":     "protocol",
		"127.0.0.1/80,[::1]:81":  "second address",
		"1-65535":                "more than 4096",
		"1-4000,4001-8000":       "more than 4096",
		"127.0.0.1/80/udp/extra": "protocol",
	} {
		got, err := ParsePublish(spec)
		var fault *PublishError
		if !errors.As(err, &fault) {
			t.Errorf("%q: got %v, %v, want a *PublishError", spec, got, err)
			continue
		}
		if !strings.Contains(err.Error(), want) || fault.Spec != spec {
			t.Errorf("%q: got %q, want it to contain %q", spec, err, want)
		}
	}
}

// FuzzParsePublish holds that whatever is accepted is bounded, complete and
// says the same when written and read again.
func FuzzParsePublish(f *testing.F) {
	for _, seed := range []string{"8080", "8080:80", "127.0.0.1:8080:80/udp", "[::1]:1-2:3-4", "::1/1,2-3:4-5/udp", "0:80", "1.2.3.4::5"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		list, err := ParsePublish(spec)
		if err != nil {
			var fault *PublishError
			if !errors.As(err, &fault) || list != nil {
				t.Fatalf("%q: %v, %v", spec, list, err)
			}
			return
		}
		if len(list) == 0 || len(list) > maxPublishedPorts {
			t.Fatalf("%q: %d ports", spec, len(list))
		}
		for _, one := range list {
			if !one.Host.Addr().IsValid() || one.Host.Addr().Is4In6() || one.Port == 0 || (one.Proto != "tcp" && one.Proto != "udp") {
				t.Fatalf("%q: %+v", spec, one)
			}
			again, err := ParsePublish(one.String())
			if err != nil || len(again) != 1 || again[0] != one {
				t.Fatalf("%q: %s reads as %v, %v", spec, one, again, err)
			}
		}
	})
}
