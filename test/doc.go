// Package test is the third ring of tests: the built programs with real
// container runtimes and clients, where the other rings use packages.
//
//	go test -tags runtimes ./test/
//
// It needs root, /dev/net/tun, and the commands that .ci/packages installs;
// what is missing fails a test. The programs are built by the tests, which run
// in mount and network namespaces of their own: nothing on the machine is
// touched, and libcni's cache in /var/lib/cni is a private, empty one.
//
// A bed is a "host" namespace, in which daemon, runtime and plugins run, an
// "outside" namespace joined to it by a cable, and containers, which are empty
// namespaces. Runtimes get them by path.
//
// podman and containerd have a machine in the host namespace: mounts and
// processes of its own, with /run, images, configuration and libcni's state
// empty at first, so that runtime, plugins and an autostarted daemon find
// everything where users have it. The machine's first process ends with the
// test, and all others with it. containerd is started once for all its tests
// and driven as kubelet does it, by the CRI API; CRI-O by its library, ocicni.
// Their clients are in test/clients, which "make tools" builds.
package test
