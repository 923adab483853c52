// Command chain measures what a container's network costs its runtime: ADD and
// DEL of the list that podman writes (bridge, portmap with one port, firewall,
// tuning), once with the reference plugins and once with usernet's drop-in
// names, in turns and in namespaces of its own, where nothing else runs.
//
//	make build && go run -C bench ./chain -bin ../bin
//
// The kernel takes some 0.1 s, after a namespace has ended, to clear it away,
// and each wait for RCU callbacks meanwhile waits for its as well. So that
// neither pays for the other, a pause is made before each ADD (-settle).
//
// It executes the plugins one after the other as libcni does: each ADD gets the
// result of the one before, DEL goes backwards with the result of the ADD. It
// needs root, and Debian's containernetworking-plugins and iptables.
package main
