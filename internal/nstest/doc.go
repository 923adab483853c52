// Package nstest lets tests use real network namespaces, real TUN devices and
// the kernel's own TCP/IP, and nothing of the machine's own network.
//
// A package with such tests, whose names begin with TestNetns, has
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
//
// As root the tests run where they are, and make the namespaces they use. As
// another user the test binary first runs itself again as root of new user,
// network and mount namespaces. Where neither is possible, [Require] skips the
// test and says exactly what is missing; with CI=true in the environment it
// fails the test instead, so that nothing is left untested unseen.
//
// Everything that a helper makes is gone at the test's end.
package nstest
