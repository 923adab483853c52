package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// SupportedVersions are the versions of the CNI specification that the plugin
// speaks, oldest first.
var SupportedVersions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// VersionsOf runs the plugin at path to ask which versions of the specification it
// speaks, oldest first. A plugin that has no such verb speaks "0.1.0".
func VersionsOf(ctx context.Context, path string) ([]string, error) {
	info, err := invoke.GetVersionInfo(ctx, path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s which versions it speaks: %w", path, err)
	}
	return info.SupportedVersions(), nil
}

// newestVersion is printed where no configuration says another.
const newestVersion = "1.1.0"

// since says in which version a verb came into the specification; the others
// were there from the start.
var since = map[string]string{cmdCheck: "0.4.0", cmdGC: "1.1.0", cmdStatus: "1.1.0"}

// negotiate returns the version to speak: the configuration's, which the
// specification lets be absent and then means 0.1.0. Any other that is not
// supported, or that does not have the verb, is code 1.
func negotiate(command, configured string) (string, error) {
	v := configured
	if v == "" {
		v = "0.1.0"
	}
	if !slices.Contains(SupportedVersions, v) {
		return newestVersion, &types.Error{
			Code:    types.ErrIncompatibleCNIVersion,
			Msg:     fmt.Sprintf("incompatible CNI version: cniVersion %q of the configuration is not supported", v),
			Details: "supported versions: " + strings.Join(SupportedVersions, ", "),
		}
	}
	first, limited := since[command]
	if !limited {
		return v, nil
	}
	ok, err := version.GreaterThanOrEqualTo(v, first)
	if err != nil {
		return v, fail(types.ErrDecodingFailure, "decode cniVersion %q: %v", v, err)
	}
	if !ok {
		return v, fail(types.ErrIncompatibleCNIVersion,
			"incompatible CNI version: cniVersion %q of the configuration has no %s; it came with %s", v, command, first)
	}
	return v, nil
}

// printVersions answers VERSION, in the version that it was asked in: since
// 1.0.0 the specification wants it back (§5). Old runtimes send nothing, and
// people at a terminal neither; they get the newest.
func printVersions(w io.Writer, stdin io.Reader) error {
	b, err := json.Marshal(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{askedVersion(stdin), SupportedVersions})
	if err != nil {
		return fmt.Errorf("encode the versions: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write the versions: %w", err)
	}
	return nil
}

// askedVersion reads the version of a VERSION request, the newest if there is
// none that could be meant.
func askedVersion(stdin io.Reader) string {
	if f, ok := stdin.(*os.File); ok {
		if fi, err := f.Stat(); err != nil || fi.Mode()&os.ModeCharDevice != 0 {
			return newestVersion // a terminal would have to be waited for
		}
	}
	if stdin == nil {
		return newestVersion
	}
	var request struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.NewDecoder(io.LimitReader(stdin, maxVersionRequest)).Decode(&request); err != nil || request.CNIVersion == "" {
		return newestVersion
	}
	return request.CNIVersion
}

// maxVersionRequest bounds what is read of a VERSION request, in bytes.
const maxVersionRequest = 64 << 10

// printAbout answers a start by hand, without CNI_COMMAND.
func printAbout(w io.Writer, p *program, release string) {
	fmt.Fprintf(w, "%sCNI protocol versions supported: %s\n%s",
		p.about(release), strings.Join(SupportedVersions, ", "), p.provenance(release))
}
