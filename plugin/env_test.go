package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// wantError fails the test unless err is of the code and says all the words.
func wantError(t *testing.T, err error, code uint, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want code %d", code)
	}
	e := asCNI(err)
	if e.Code != code {
		t.Errorf("code %d, want %d: %v", e.Code, code, e)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("error does not say %q: %v", w, e)
		}
	}
}

func TestReadParameters(t *testing.T) {
	full := environ{"CNI_CONTAINERID=c1", "CNI_NETNS=/n", "CNI_IFNAME=eth0", "CNI_ARGS=A=b", "CNI_PATH=/p"}
	for _, test := range []struct {
		name  string
		env   environ
		want  parameters
		words []string // of an error of code 4
	}{
		{name: "ADD", env: full.with("CNI_COMMAND", "ADD"),
			want: parameters{Command: "ADD", ContainerID: "c1", Netns: "/n", IfName: "eth0", Args: "A=b", Path: "/p"}},
		{name: "override", env: full.with("CNI_COMMAND", "ADD").with("CNI_NETNS_OVERRIDE", "True"),
			want: parameters{Command: "ADD", ContainerID: "c1", Netns: "/n", IfName: "eth0", Args: "A=b", Path: "/p", NetnsOverride: true}},
		{name: "DEL without namespace", env: full.with("CNI_COMMAND", "DEL").with("CNI_NETNS", ""),
			want: parameters{Command: "DEL", ContainerID: "c1", IfName: "eth0", Args: "A=b", Path: "/p"}},
		{name: "GC needs nothing", env: environ{"CNI_COMMAND=GC"}, want: parameters{Command: "GC"}},
		{name: "GC ignores dummies", env: environ{"CNI_COMMAND=GC", "CNI_IFNAME=a/b"}, want: parameters{Command: "GC", IfName: "a/b"}},
		{name: "lower case", env: full.with("CNI_COMMAND", "add"), words: []string{"CNI_COMMAND", `"add"`}},
		{name: "all missing", env: environ{"CNI_COMMAND=ADD"}, words: []string{"CNI_CONTAINERID is missing", "CNI_NETNS is missing", "CNI_IFNAME is missing"}},
		{name: "container id", env: full.with("CNI_COMMAND", "ADD").with("CNI_CONTAINERID", "../x"), words: []string{"CNI_CONTAINERID", `"../x"`}},
		{name: "long name", env: full.with("CNI_COMMAND", "ADD").with("CNI_IFNAME", "sixteen-letters0"), words: []string{"CNI_IFNAME", "sixteen-letters0", "15"}},
		{name: "dots", env: full.with("CNI_COMMAND", "DEL").with("CNI_IFNAME", ".."), words: []string{"CNI_IFNAME", `".."`}},
		{name: "slash", env: full.with("CNI_COMMAND", "CHECK").with("CNI_IFNAME", "a/b"), words: []string{"CNI_IFNAME", `"a/b"`}},
		{name: "space", env: full.with("CNI_COMMAND", "ADD").with("CNI_IFNAME", "a b"), words: []string{"CNI_IFNAME"}},
		{name: "loopback", env: full.with("CNI_COMMAND", "ADD").with("CNI_IFNAME", "lo"), words: []string{"CNI_IFNAME", `"lo"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := readParameters(test.env, false)
			if test.words != nil {
				wantError(t, err, types.ErrInvalidEnvironmentVariables, test.words...)
				return
			}
			if err != nil || got != test.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, test.want)
			}
		})
	}
}

func TestNegotiate(t *testing.T) {
	for _, test := range []struct {
		command, configured, want string
		code                      uint
	}{
		{command: "ADD", want: "0.1.0"},
		{command: "DEL", configured: "0.2.0", want: "0.2.0"},
		{command: "ADD", configured: "1.1.0", want: "1.1.0"},
		{command: "CHECK", configured: "0.4.0", want: "0.4.0"},
		{command: "CHECK", configured: "0.3.1", code: 1},
		{command: "CHECK", code: 1},
		{command: "GC", configured: "1.0.0", code: 1},
		{command: "STATUS", configured: "1.0.0", code: 1},
		{command: "STATUS", configured: "1.1.0", want: "1.1.0"},
		{command: "ADD", configured: "2.0.0", code: 1},
		{command: "ADD", configured: "1.0", code: 1},
		{command: "ADD", configured: "one", code: 1},
	} {
		got, err := negotiate(test.command, test.configured)
		if test.code != 0 {
			wantError(t, err, test.code, "cniVersion", test.configured)
		} else if err != nil || got != test.want {
			t.Errorf("%s %q: got %q, %v, want %q", test.command, test.configured, got, err, test.want)
		}
	}
}

// runWith runs one invocation and returns its exit status and outputs.
func runWith(stdin io.Reader, env ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = Run(context.Background(), Process{Env: env, Stdin: stdin, Stdout: &out, Stderr: &errs, Release: "v9"})
	return status, out.String(), errs.String()
}

// unreadable fails the test that reads it.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the standard input was read")
	return 0, io.EOF
}

func TestRunWithoutCommand(t *testing.T) {
	status, stdout, stderr := runWith(unreadable{t})
	if status != 0 || stdout != "" || !strings.HasPrefix(stderr, "CNI usernet plugin v9\n") || !strings.Contains(stderr, "0.1.0, ") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

// TestRunVersion: the answer has the version of the question, the newest where
// none was asked, and never fails.
func TestRunVersion(t *testing.T) {
	for stdin, version := range map[string]string{
		"": "1.1.0", "{": "1.1.0", "{}": "1.1.0", "[1]": "1.1.0",
		`{"cniVersion":"0.4.0"}`: "0.4.0", `{"cniVersion":"1.0.0","name":"n"}`: "1.0.0",
	} {
		status, stdout, stderr := runWith(strings.NewReader(stdin), "CNI_COMMAND=VERSION", "CNI_NETNS=dummy", "CNI_IFNAME=dummy", "CNI_PATH=dummy")
		want := `{"cniVersion":"` + version + `","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"
		if status != 0 || stdout != want || stderr != "" {
			t.Errorf("asked %q: status %d, stderr %q, stdout %s", stdin, status, stderr, stdout)
		}
	}
}

// TestRunErrors: every kind of bad input is one error object on the standard
// output, in the configuration's version, before anything is touched.
func TestRunErrors(t *testing.T) {
	add := []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_NETNS=/no/such/ns", "CNI_IFNAME=eth0"}
	for _, test := range []struct {
		name, stdin, version string
		env                  []string
		code                 uint
		words                []string
	}{
		{"unknown command", "", "1.1.0", []string{"CNI_COMMAND=FETCH"}, 4, []string{"FETCH"}},
		{"empty input", "", "1.1.0", add, 6, []string{"standard input"}},
		{"no JSON", "{", "1.1.0", add, 6, nil},
		{"an array", "[]", "1.1.0", add, 6, nil},
		{"version of another type", `{"cniVersion":1}`, "1.1.0", add, 6, nil},
		{"too new", `{"cniVersion":"9.0.0","name":"n","fancy":1}`, "1.1.0", add, 1, []string{"9.0.0"}},
		{"no name", `{"cniVersion":"0.4.0"}`, "0.4.0", add, 7, []string{`"name"`}},
		{"bad name", `{"cniVersion":"0.4.0","name":"a b"}`, "0.4.0", add, 7, []string{`"name"`, "a b"}},
		{"unknown key", `{"cniVersion":"1.0.0","name":"n","colour":"blue"}`, "1.0.0", add, 2, []string{`"colour"`, "blue"}},
		{"no such namespace", `{"cniVersion":"1.0.0","name":"n"}`, "1.0.0", add, 8, []string{"/no/such/ns"}},
		{"no version", `{"name":"n"}`, "0.1.0", add, 8, nil},
		{"not a namespace", `{"cniVersion":"1.0.0","name":"n"}`, "1.0.0", append(add, "CNI_NETNS=/proc/self/stat"), 8, []string{"not a network namespace"}},
		{"own namespace", `{"cniVersion":"1.0.0","name":"n"}`, "1.0.0", append(add, "CNI_NETNS=/proc/self/ns/net"), 8, []string{"CNI_NETNS_OVERRIDE"}},
		{"CHECK without result", `{"cniVersion":"1.0.0","name":"n"}`, "1.0.0", append(add, "CNI_COMMAND=CHECK"), 7, []string{"prevResult"}},
		{"too long", `{"name":"` + strings.Repeat("x", maxInput) + `"}`, "1.1.0", add, 6, []string{"longer"}},
		{"no IPAM plugin", `{"name":"n","ipam":{"type":"nope"}}`, "0.1.0", []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=c", "CNI_IFNAME=e", "CNI_PATH=/none", "USERNET_SOCKET=x"}, 7, []string{"nope", "/none"}},
		{"IPAM plugin without path", `{"name":"n","ipam":{"type":"nope"}}`, "0.1.0", []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=c", "CNI_IFNAME=e"}, 4, []string{"nope", "CNI_PATH"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.stdin != "" && test.stdin[0] == '{' && test.stdin != "{" && !strings.Contains(test.stdin, "xxx") {
				socket := t.TempDir() + "/none/usernet.sock"
				test.stdin = `{"socket":"` + socket + `","autostart":false,` + test.stdin[1:]
			}
			status, stdout, _ := runWith(strings.NewReader(test.stdin), test.env...)
			var got struct {
				CNIVersion string `json:"cniVersion"`
				types.Error
			}
			if err := json.Unmarshal([]byte(stdout), &got); err != nil || status == 0 {
				t.Fatalf("status %d, %v, stdout %s", status, err, stdout)
			}
			if got.CNIVersion != test.version {
				t.Errorf("cniVersion %q, want %q", got.CNIVersion, test.version)
			}
			wantError(t, &got.Error, test.code, test.words...)
		})
	}
}

// TestRunDelOfNothing: whatever is missing, DEL succeeds, and says nothing. The
// interface's name is one that no machine has, for the day that DEL is broken:
// one of the namespaces is the machine's own.
func TestRunDelOfNothing(t *testing.T) {
	dir := t.TempDir()
	config := `{"cniVersion":"1.0.0","name":"n","socket":"` + dir + `/none/usernet.sock","edited":"since","mtu":"wrong"}`
	for _, netns := range []string{"", "/no/such/ns", "/proc/self/stat", "/proc/self/ns/net"} {
		status, stdout, stderr := runWith(strings.NewReader(config),
			"CNI_COMMAND=DEL", "CNI_CONTAINERID=c", "CNI_IFNAME=un-not-there", "CNI_NETNS="+netns, "CNI_ARGS=nonsense")
		if status != 0 || stdout != "" || stderr != "" {
			t.Errorf("CNI_NETNS=%q: status %d, stdout %q, stderr %q", netns, status, stdout, stderr)
		}
	}
}

func TestAsCNI(t *testing.T) {
	inner := fail(7, "inner")
	for _, test := range []struct {
		err  error
		code uint
		msg  string
	}{
		{inner, 7, "inner"},
		{errors.Join(errors.New("first"), inner), 7, "first; inner"},
		{io.ErrUnexpectedEOF, 5, "unexpected EOF"},
	} {
		got := asCNI(test.err)
		if diff := cmp.Diff(types.NewError(test.code, test.msg, ""), got); diff != "" {
			t.Error(diff)
		}
	}
}
