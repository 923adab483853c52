// Package podman reads what podman's own configuration says about published
// ports (containers.conf(5)).
package podman
