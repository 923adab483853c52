// Package tunneltest has what tests of tunnels and of the switch need: a pair
// of devices in memory and the contract that every tunnel.Device keeps.
//
// [Pair] stands for a container's kernel on one end and the switch's device on
// the other. Closing one end is the death of the other's far side. It is
// deliberately unkind: each ReadFrame first overwrites all the buffers that it
// was given, so that a reader which hands memory on and reads into it again is
// found out at once, and its queue is as short as a TUN's, so that a writer
// meets tunnel.ErrFull.
//
// [TestDevice] is the contract as a test suite. It runs on Pair, on wrapped
// wireguard devices and on a real TUN.
package tunneltest
