// Package clients is a module of its own: the libraries by which kubelet and
// CRI-O reach a runtime and its plugins, as programs for the tests of package
// test. What they need is thus no requirement of usernet.
//
//	cri    calls any method of the CRI API
//	crio   what CRI-O does with a network, by its library ocicni
//
// The third, ocicnitool, is that library's own.
package clients
