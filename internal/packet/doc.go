// Package packet reads and writes IP packets for the switch: a header view
// that does not allocate, checksums, ICMP errors, TCP resets, fragments.
package packet
