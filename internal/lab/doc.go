// Package lab plays the container in tests that need no privilege: a second
// gVisor stack at the far end of a tunnel.Device, which dials, listens and
// resets as a container's kernel would, superframes and open checksums
// included.
//
// A [Container] has one reader goroutine, which ends when the device is closed.
// [New] registers its end with the test. The stack is gVisor as it comes, but
// for SACK and a receive path that believes open checksums: nothing that the
// switch's own tuning could hide behind.
package lab
