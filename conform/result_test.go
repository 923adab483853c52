package conform

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestResultJudgements: results that are right in one version and wrong in
// another, one fault each.
func TestResultJudgements(t *testing.T) {
	const modern = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"10.0.0.2/24","interface":0}]}`
	for name, test := range map[string]struct{ version, text, fault string }{
		"modern":               {"1.0.0", modern, ""},
		"version of another":   {"1.1.0", modern, "cniVersion"},
		"old":                  {"0.2.0", `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]}}`, ""},
		"old without version":  {"0.1.0", `{"ip6":{"ip":"fd00::2/64"}}`, ""},
		"old with new keys":    {"0.2.0", modern, `no key "ips"`},
		"old without address":  {"0.1.0", `{}`, "neither ip4 nor ip6"},
		"new with old keys":    {"1.0.0", strings.Replace(modern, "{", `{"ip4":{"ip":"10.0.0.2/24"},`, 1), `no key "ip4"`},
		"family":               {"0.4.0", `{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"version":"6","address":"fd00::2/64","interface":0}]}`, ""},
		"wrong family":         {"0.4.0", `{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"version":"4","address":"fd00::2/64","interface":0}]}`, `want "6"`},
		"no family":            {"0.3.1", strings.Replace(modern, "1.0.0", "0.3.1", 1), `want "4"`},
		"family since 1.0.0":   {"1.0.0", strings.Replace(modern, `"address"`, `"version":"4","address"`, 1), "was removed"},
		"no interfaces":        {"1.0.0", `{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}`, "no interfaces"},
		"index too high":       {"1.0.0", strings.Replace(modern, `"interface":0`, `"interface":1`, 1), "is 1"},
		"index below":          {"1.0.0", strings.Replace(modern, `"interface":0`, `"interface":-1`, 1), "is -1"},
		"no index":             {"1.0.0", strings.Replace(modern, `,"interface":0`, ``, 1), "names no interface"},
		"other sandbox":        {"1.0.0", strings.Replace(modern, "/ns", "/other", 1), "CNI_NETNS"},
		"other name":           {"1.0.0", strings.Replace(modern, "eth0", "net1", 1), "CNI_IFNAME"},
		"address without bits": {"1.0.0", strings.Replace(modern, "10.0.0.2/24", "10.0.0.2", 1), "CIDR"},
		"gateway":              {"1.0.0", strings.Replace(modern, `"interface"`, `"gateway":"10.0.0.1/24","interface"`, 1), "gateway"},
		"route":                {"1.0.0", strings.Replace(modern, "{", `{"routes":[{"dst":"default"}],`, 1), "dst of route 0"},
		"old route":            {"0.2.0", `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"default"}]}}`, "dst of route 0"},
		"name server":          {"1.0.0", strings.Replace(modern, "{", `{"dns":{"nameservers":["one.example"]},`, 1), "nameservers[0]"},
		"mac":                  {"1.0.0", strings.Replace(modern, `"sandbox"`, `"mac":"zz","sandbox"`, 1), "mac"},
		"two values":           {"1.0.0", modern + modern, "follows"},
		"log before":           {"1.0.0", "attaching\n" + modern, "invalid character"},
		"nothing":              {"1.0.0", " \n", "is empty"},
	} {
		err := judgeResult(test.text, test.version)
		if test.fault == "" && err != nil || test.fault != "" && (err == nil || !strings.Contains(err.Error(), test.fault)) {
			t.Errorf("%s: %v, want %q", name, err, test.fault)
		}
	}
}

func judgeResult(text, version string) error {
	r, err := parseResult(text)
	if err != nil {
		return err
	}
	err = errors.Join(r.hasVersion(version), r.hasShape(version), r.hasIndices(), r.parses())
	if !old(version) {
		_, ierr := r.inSandbox("eth0", "/ns")
		err = errors.Join(err, ierr)
	}
	return err
}

func TestCallJudgements(t *testing.T) {
	object := func(code int, msg string) string { return fmt.Sprintf(`{"code":%d,"msg":%q}`, code, msg) }
	for name, test := range map[string]struct {
		call                           Call
		succeeds, silent, refused, ok4 bool
	}{
		"success":       {Call{Status: 0}, true, true, false, false},
		"talkative":     {Call{Status: 0, Stdout: "{}"}, true, false, false, false},
		"code 4":        {Call{Status: 1, Stdout: object(4, "CNI_IFNAME")}, false, false, true, true},
		"code 7":        {Call{Status: 1, Stdout: object(7, "CNI_IFNAME")}, false, false, true, false},
		"code 4 of 0":   {Call{Status: 0, Stdout: object(4, "CNI_IFNAME")}, true, false, false, false},
		"no code":       {Call{Status: 1, Stdout: `{"msg":"CNI_IFNAME"}`}, false, false, true, false},
		"no msg":        {Call{Status: 1, Stdout: `{"code":4}`}, false, false, true, false},
		"text":          {Call{Status: 1, Stdout: "error"}, false, false, true, false},
		"on stderr":     {Call{Status: 1, Stderr: object(4, "CNI_IFNAME")}, false, false, true, false},
		"killed":        {Call{Status: -1}, false, false, false, false},
		"log in stdout": {Call{Status: 1, Stdout: "log\n" + object(4, "CNI_IFNAME")}, false, false, true, false},
	} {
		c := test.call
		if got := c.succeeded() == nil; got != test.succeeds {
			t.Errorf("%s: succeeded %v", name, got)
		}
		if got := c.silent() == nil; got != test.silent {
			t.Errorf("%s: silent %v", name, got)
		}
		if got := c.refused() == nil; got != test.refused {
			t.Errorf("%s: refused %v", name, got)
		}
		if got := errors.Join(c.code(4), c.names("CNI_IFNAME")) == nil; got != test.ok4 {
			t.Errorf("%s: code 4 %v", name, got)
		}
	}
}
