package toolbox

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Install installs the named components that are missing: Debian packages (as root) and npm packages beside
// `go install`, since they wait for the network most of the time. A folder appears under its final name only
// when it is whole. Two runs at once wait for each other.
//
// The error names every component that could not be installed, with the end of what its installer said.
func Install(ctx context.Context, out io.Writer, names []string) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(cache, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	in := &installer{cache: cache, out: out}
	programs, builds, npmProjects, err := in.missing(names)
	if err != nil {
		return err
	}
	var own []string
	for _, name := range names {
		if _, err := Path(name); workspaces[name].pkg != "" && errors.Is(err, ErrMissing) {
			own = append(own, name)
		}
	}
	var wg sync.WaitGroup
	var debianErr, npmErr, buildErr error
	wg.Go(func() {
		debianErr = in.debian(ctx, programs)
		if len(npmProjects) == 0 || debianErr != nil {
			return
		}
		npm, err := Path("npm") // only now: it may have been among the packages, as its compilers may
		for _, project := range npmProjects {
			if err == nil {
				err = in.project(ctx, npm, project)
			}
		}
		npmErr = err
	})
	for _, m := range builds {
		buildErr = errors.Join(buildErr, in.build(ctx, m))
	}
	for _, name := range own {
		buildErr = errors.Join(buildErr, in.workspace(ctx, name))
	}
	wg.Wait()
	return errors.Join(debianErr, npmErr, buildErr)
}

type installer struct {
	cache string
	out   io.Writer
	mu    sync.Mutex
}

// missing says which programs, modules and npm projects are not there yet.
func (in *installer) missing(names []string) (programs []string, builds []module, npmProjects []string, err error) {
	for _, name := range names {
		if projects[name] != "" {
			switch _, err := Packages(name); {
			case err == nil:
				continue // its compilers are needed no more
			case !errors.Is(err, ErrMissing):
				return nil, nil, nil, err
			}
			npmProjects = append(npmProjects, name)
		} else if _, err := Path(name); err != nil && !errors.Is(err, ErrMissing) {
			return nil, nil, nil, err
		} else if i := slices.IndexFunc(modules, func(m module) bool { return m.name == name }); i >= 0 && err != nil {
			builds = append(builds, modules[i])
		}
		for _, program := range append([]string{name}, needs[name]...) {
			if _, err := Path(program); debian[program] != nil && err != nil {
				programs = append(programs, program)
			}
		}
	}
	return programs, builds, npmProjects, nil
}

func (in *installer) debian(ctx context.Context, programs []string) error {
	var packages []string
	for _, program := range programs {
		packages = append(packages, debian[program]...)
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	if len(packages) == 0 {
		return nil
	}
	list := strings.Join(packages, " ")
	if os.Geteuid() != 0 {
		return fmt.Errorf("these Debian packages are missing, and only root can install them: %s", list)
	}
	env := append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if err := in.run(ctx, "", env, "the list of Debian packages", "apt-get", "update", "-q"); err != nil {
		return err
	}
	undo, err := withoutServices("/usr/sbin/policy-rc.d")
	if err != nil {
		return err
	}
	err = in.run(ctx, "", env, list, append([]string{"apt-get", "install", "-qy", "--no-install-recommends"}, packages...)...)
	return errors.Join(err, undo())
}

// withoutServices has Debian start none of the servers that its packages bring: tests start their own. A policy that the
// machine has already stays.
func withoutServices(policy string) (undo func() error, err error) {
	f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, os.ErrExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString("#!/bin/sh\nexit 101\n"); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(policy))
	}
	return func() error { return os.Remove(policy) }, f.Close()
}

func (in *installer) build(ctx context.Context, m module) error {
	return in.whole(m.dir(in.cache), func(dir string) error {
		// The flags are those of the project's own build, which shares the build cache.
		compiler := "CGO_ENABLED=0"
		if cgo[m.name] {
			compiler = "CGO_ENABLED=1"
		}
		env := append(os.Environ(), "GOBIN="+dir, compiler, "GOFLAGS=-trimpath")
		err := in.run(ctx, "", env, m.name+" "+m.version, "go", "install", m.path+m.pkg+"@"+m.version)
		if err != nil {
			return err
		}
		info, err := buildinfo.ReadFile(filepath.Join(dir, m.name))
		if err != nil {
			return err
		}
		if info.Main.Path != m.path || info.Main.Sum != m.sum {
			return fmt.Errorf("%s was built from %s %s, not from %s", m.name, info.Main.Path, info.Main.Sum, m.sum)
		}
		return nil
	})
}

// workspace builds the program of a folder with a go.mod of its own.
func (in *installer) workspace(ctx context.Context, name string) error {
	final, err := workspaceDir(in.cache, name)
	if err != nil {
		return err
	}
	w, env := workspaces[name], append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	return in.whole(final, func(dir string) error {
		source := filepath.Join(dir, "source")
		if err := os.CopyFS(source, os.DirFS(sources(in.cache, name))); err != nil {
			return err
		}
		if err := in.run(ctx, source, env, name, "go", "build", "-o", filepath.Join(dir, name), w.pkg); err != nil || w.assets == nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", w.pkg)
		cmd.Dir, cmd.Env = source, env
		module, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("where %s lies: %w", w.pkg, err)
		}
		for _, assets := range w.assets {
			if err := os.CopyFS(filepath.Join(dir, assets), os.DirFS(filepath.Join(strings.TrimSpace(string(module)), assets))); err != nil {
				return err
			}
		}
		return nil
	})
}

// project installs Node, which also has the headers that better-sqlite3 is compiled with, and the packages.
func (in *installer) project(ctx context.Context, npm, name string) error {
	final, err := projectDir(in.cache, name)
	if err != nil {
		return err
	}
	node := nodeDir(in.cache)
	if _, err := os.Stat(node); err != nil {
		err := in.whole(filepath.Join(in.cache, "node@"+nodeVersion), func(dir string) error {
			return in.run(ctx, "", os.Environ(), "Node "+nodeVersion, npm, "install", "--no-save", "--no-audit", "--no-fund",
				"--prefix", dir, nodePackage()+"@"+nodeVersion)
		})
		if err != nil {
			return err
		}
	}
	env := append(os.Environ(), "PATH="+filepath.Join(node, "bin")+string(filepath.ListSeparator)+os.Getenv("PATH"),
		"npm_config_nodedir="+node) // another Node's headers give a module for another ABI
	return in.whole(final, func(dir string) error {
		for _, file := range []string{"package.json", "package-lock.json"} {
			raw, err := os.ReadFile(filepath.Join(sources(in.cache, name), file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, file), raw, 0o644); err != nil {
				return err
			}
		}
		return in.run(ctx, dir, env, projects[name], npm, "ci", "--omit=dev", "--no-audit", "--no-fund")
	})
}

// whole makes the folder final by filling another one and renaming it.
func (in *installer) whole(final string, fill func(dir string) error) error {
	dir := final + ".partial"
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	if err := fill(dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return os.Rename(dir, final)
}

// run runs an installer, whose output is shown only where it fails.
func (in *installer) run(ctx context.Context, dir string, env []string, what string, argv ...string) error {
	in.say("installing %s", what)
	start := time.Now()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, env
	cmd.WaitDelay = 5 * time.Second
	output, err := cmd.CombinedOutput()
	if err != nil {
		lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
		lines = lines[max(0, len(lines)-15):]
		return fmt.Errorf("cannot install %s: %s: %w\n%s", what, strings.Join(argv, " "), err, bytes.Join(lines, []byte("\n")))
	}
	in.say("installed %s in %s", what, time.Since(start).Round(time.Second))
	return nil
}

func (in *installer) say(format string, args ...any) {
	in.mu.Lock()
	defer in.mu.Unlock()
	_, _ = fmt.Fprintf(in.out, "components: "+format+"\n", args...) // progress for people
}

// lock waits until no other process installs.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil // closing releases the lock
}
