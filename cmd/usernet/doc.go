// Command usernet gives commands and containers a network from one unprivileged
// process. "usernet help" lists what it does.
//
// # Theory of operation
//
// [run] is the program: arguments, environment and streams go in, an exit status
// comes out. Each command is a method of [app] that turns flags into a call of a
// package that does the work, and its answer into a table, or JSON with --json.
// Errors become exit statuses in one place, app.exitStatus.
//
// "usernet run" is a [runner]: it checks all flags (plan), opens the files that it
// will write, starts the command with internal/sandbox, forwards signals, and
// writes the summary when the command has ended. Its network is its own, in this
// process, or the daemon's; the interface runNetwork hides which.
//
// "usernet demo" starts this executable again in namespaces of its own, as the
// machine of the demo; that one starts it again in sandboxes, as the programs
// there. The name that a process was started under (argv[0]) says which it is,
// and main asks the sandbox's set-up and the demo for that before anything else.
//
// All other commands are clients of the daemon, which "usernet daemon" runs.
package main
