// Command usernet-cni is the CNI plugin of usernet. Runtimes find a plugin by
// the type of the network, so it is installed among theirs under the name
// "usernet". It reads one invocation from its environment and its standard
// input, and answers on its standard output; all of it is in package plugin.
//
// Started by hand, without CNI_COMMAND, it tells its version.
package main
