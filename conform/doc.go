// Package conform is a black-box suite of the CNI specification, for any plugin.
//
// # What a case is
//
// A case is a name, a version of the specification, a level (MUST, SHOULD or
// MAY), the section that it follows from, and a function that invokes the plugin
// as a runtime would and judges what it sees: the exit status, both standard
// streams, and the network namespaces. It knows nothing of the plugin but its
// executable and a configuration. [List] tells the cases, [Run] tries them, in
// every version that the plugin's VERSION lists and that the suite knows
// ([SpecVersions]); a case that needs another one is reported as not supported,
// not as failed.
//
// Of a fault in the environment or the configuration there are two cases: that
// the plugin fails at all and leaves everything as it was, which the
// specification demands, and that its error says so in the right code, which the
// specification recommends.
//
// # Where cases run
//
// [Run] makes a network namespace that is the host to the plugin, with nothing
// but a loopback interface, and another one for each container, mounted on files
// of a temporary directory. It changes the namespace of no thread that it did not
// make, and unmounts and removes what it made, after an interrupt too. What it
// cannot undo is what the plugin writes into the file system, such as leases in
// /var/lib/cni: the command cni-conform therefore runs it in mount and process
// namespaces of their own.
//
// A case that adds an attachment deletes it again, whatever came of it, and no
// case stands on another. What plugins share among attachments, such as a bridge
// that the first ADD makes and no DEL removes, is made before the first case that
// compares the host before with the host after: one attachment is added and
// deleted for that.
//
// # What bounds it
//
// Each invocation has a limit (Config.CallLimit), after which the plugin is
// killed and the case fails. The number of cases is that of [List]; the number of
// containers at once is Config.Parallel, and of kills Config.Kills. The times of
// kills come from Config.Seed, so that a run can be repeated, as far as the
// plugin does the same again.
//
// There are no goroutines but those that wait for plugins that run at once, which
// end with them or at their limit.
//
// # What it does not look at
//
// Capability arguments (CONVENTIONS.md) and whether packets flow: a plugin may
// conform and not connect anything. Neither does it know what a plugin keeps
// outside of network namespaces, so that a lease that leaks is seen only when
// addresses run out.
package conform
