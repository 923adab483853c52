package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// resolverSockets lead to resolvers of the machine, past the sandbox's own: the
// C library's name service cache and systemd's resolver. With /dev/null in their
// place connecting is refused, and the C library asks what resolv.conf names.
var resolverSockets = []string{
	"/run/nscd/socket",
	"/run/systemd/resolve/io.systemd.Resolve",
}

// scratchDirs are where a file system is mounted for a moment while its files
// are being put in place. None of them is the place of a generated file.
var scratchDirs = []string{"/tmp", "/var", "/mnt", "/run"}

// privateMounts lets mounts of the machine still appear in this process's mount
// namespace, and none of its own elsewhere.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate the mounts: %w", os.NewSyscallError("mount", err))
	}
	return nil
}

// mountFiles puts generated files in the place of the machine's. paths are
// absolute; symbolic links are followed, so that the real file is what is
// covered. A path that leads to nothing is created in an overlay of its
// directory, never on the machine's own file system.
func mountFiles(files map[string][]byte) error {
	if len(files) == 0 {
		return nil
	}
	paths := make([]string, 0, len(files))
	for path := range files {
		paths = append(paths, path)
	}
	slices.Sort(paths)

	targets, missing, err := openTargets(paths)
	defer closeAll(targets)
	if err != nil {
		return err
	}
	scratch, unmount, err := mountScratch()
	if err != nil {
		return err
	}
	defer unmount()
	for i, path := range missing {
		if err := overlayFile(filepath.Join(scratch, fmt.Sprint("overlay", i)), path, files[path]); err != nil {
			return err
		}
	}
	for path, target := range targets {
		source := filepath.Join(scratch, filepath.Base(path))
		if err := os.WriteFile(source, files[path], 0o644); err != nil {
			return fmt.Errorf("write a file for %s: %w", path, err)
		}
		if err := bindOver(source, target); err != nil {
			return fmt.Errorf("cover %s: %w", path, err)
		}
	}
	return nil
}

// openTargets opens what is to be covered before anything is mounted, so that
// the scratch mount cannot hide it.
func openTargets(paths []string) (targets map[string]*os.File, missing []string, err error) {
	targets = make(map[string]*os.File, len(paths))
	for _, path := range paths {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, path)
		case err != nil:
			return targets, nil, err
		default:
			targets[path] = f
		}
	}
	return targets, missing, nil
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// mountScratch mounts an empty file system. unmount takes it off its directory;
// what was bound elsewhere stays.
func mountScratch() (dir string, unmount func(), err error) {
	var errs []error
	for _, dir := range scratchDirs {
		err := unix.Mount("usernet", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755")
		if err == nil {
			// Nothing keeps a mount of this process's own from being detached.
			return dir, func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }, nil
		}
		errs = append(errs, &os.PathError{Op: "mount tmpfs on", Path: dir, Err: err})
	}
	return "", nil, errors.Join(errs...)
}

func bindOver(source string, target *os.File) error {
	over := fmt.Sprintf("/proc/self/fd/%d", target.Fd())
	if err := unix.Mount(source, over, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind " + source + " over", Path: target.Name(), Err: err}
	}
	return nil
}

// overlayFile lets path hold data in an overlay of its directory, which replaces
// a dangling symbolic link too. scratch is a directory to be made.
func overlayFile(scratch, path string, data []byte) error {
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make an overlay for %s: %w", path, err)
		}
	}
	if err := os.WriteFile(filepath.Join(upper, filepath.Base(path)), data, 0o644); err != nil {
		return fmt.Errorf("write a file for %s: %w", path, err)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", filepath.Dir(path), upper, work)
	if err := unix.Mount("overlay", filepath.Dir(path), "overlay", 0, options); err != nil {
		return fmt.Errorf("%s does not exist, and an overlay that would hold it cannot be mounted (create an empty %s): %w",
			path, path, os.NewSyscallError("mount", err))
	}
	return nil
}

// maskSockets cuts the command off from resolvers that are reached through the
// file system. What is not there needs no mask.
func maskSockets(paths []string) error {
	for _, path := range paths {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		if err != nil {
			continue
		}
		err = bindOver("/dev/null", f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
