// Package cnilint judges CNI network configurations as files: what a runtime
// and its chain of plugins will do with them, before a container is hurt by it.
//
// # Theory of operation
//
// [Parse] reads texts that the caller has read, and never fails: what cannot be
// understood becomes a [Finding]. The [Set] that it returns says what else is to
// be looked up on the machine ([Set.Types], [Set.Sockets]); the caller looks and
// hands it over as [Facts]. [Set.Lint] is then a pure function of both, so every
// rule is tested by a file and a line of a table. A fact that is missing (nil)
// silences the rules that need it.
//
// The rules are in four files. rules.go: what holds for one configuration of
// type "usernet"; what the plugin itself refuses is asked of the plugin
// (Facts.Judge), so the two cannot disagree. chain.go: what the reference
// plugins do when they run after usernet. They were written for a veth pair with
// a bridge, and some of them report success and break the container.
// machine.go: executables, daemons, the TUN device, podman. across.go: what
// several files do to each other.
//
// Other types of plugin are judged only as far as usernet is concerned. A type
// whose executable is usernet's under another name counts as usernet's.
package cnilint
