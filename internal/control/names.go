package control

import (
	"regexp"
	"strings"
	"unicode"
)

// nameRE is the alphabet of CNI for network names and container ids
// (CNI spec 1.1.0, "Parameters"). It holds no slash, so a name can neither
// leave a directory nor blur a link id.
var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// maxName bounds names in bytes; CNI has no bound, file systems and logs do.
const maxName = 255

// maxIfName is IFNAMSIZ less the terminating NUL (linux/if.h).
const maxIfName = 15

// ValidateName checks a network name or container id; what says which of the
// two the message should speak of.
func ValidateName(what, name string) error {
	switch {
	case name == "":
		return Errorf(CodeInvalid, "%s is empty", what)
	case len(name) > maxName:
		return Errorf(CodeInvalid, "%s %.20q… has %d bytes, the limit is %d", what, name, len(name), maxName)
	case !nameRE.MatchString(name):
		return Errorf(CodeInvalid, "%s %q: want letters, digits, '_', '.', '-', with a letter or digit first", what, name)
	}
	return nil
}

// ValidateIfName checks the name of an interface as the kernel and CNI do.
func ValidateIfName(name string) error {
	switch {
	case name == "":
		return Errorf(CodeInvalid, "interface name is empty")
	case len(name) > maxIfName:
		return Errorf(CodeInvalid, "interface name %q has %d bytes, the kernel's limit is %d", name, len(name), maxIfName)
	case name == "." || name == "..":
		return Errorf(CodeInvalid, "interface name %q is not allowed", name)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || r == 0 }):
		return Errorf(CodeInvalid, "interface name %q holds '/', ':', NUL or white space", name)
	}
	return nil
}

// Validate checks the three parts of the key.
func (k LinkKey) Validate() error {
	if err := ValidateName("network name", k.Network); err != nil {
		return err
	}
	if err := ValidateName("container id", k.Container); err != nil {
		return err
	}
	return ValidateIfName(k.IfName)
}

// ValidDNSName reports whether a resolver can be asked for the name: labels of
// letters, digits, hyphens and the underscore that container names use, 253
// bytes in all (RFC 1035 section 2.3.4).
func ValidDNSName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.ToLower(name), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}
