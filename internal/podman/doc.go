// Package podman reads what podman's own configuration says about published
// ports and CNI plugins (containers.conf(5)).
package podman
