package credhelper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/cli/browser"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Program is docker-credential-atcr with everything that belongs to the process given.
type Program struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Version        string
}

// Environment of the program. It has no other settings.
const (
	// EnvDir names the folder of accounts; else `atcr` in the user's configuration folder.
	EnvDir = "DOCKER_CREDENTIAL_ATCR_DIR"
	// EnvFile, where it is not empty, keeps secrets in a file though there may be a keychain.
	EnvFile = "DOCKER_CREDENTIAL_ATCR_FILE"
)

// Helper is the accounts of this machine's user.
func (p *Program) helper() (*Helper, error) {
	dir := os.Getenv(EnvDir)
	if dir == "" {
		config, err := os.UserConfigDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(config, "atcr")
	}
	return &Helper{
		Dir: dir, Keys: SystemKeychain{}, OnlyFile: os.Getenv(EnvFile) != "", Patience: keychainPatience,
		Client: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		Stderr: p.Stderr, Now: time.Now,
	}, nil
}

// Run runs the command that args name and returns the process's exit code.
func (p *Program) Run(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(append([]string{}, args...)) // nil would be the process's own
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errProtocol), errors.Is(err, errBroken):
		return 1 // it was said
	case errors.Is(err, context.Canceled):
		_, _ = fmt.Fprintln(p.Stderr, "Ended: nothing was changed.")
		return 130
	}
	sayTo(p.Stderr, "docker-credential-atcr: %s\n", err)
	return 1
}

// errProtocol says that a client was told what is wrong, on standard output as the protocol has it.
var errProtocol = errors.New("told")

func (p *Program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "docker-credential-atcr",
		Short: "Sign in to ATCR registries, for docker, podman, crane and others",
		Long: `docker-credential-atcr signs you in to ATCR registries with your atproto account, without a password on this machine.

  docker-credential-atcr login atcr.example       approve this machine in your browser
  docker-credential-atcr configure-docker         let docker and others use it
  docker push atcr.example/alice.com/app:1.0`,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs, RunE: help,
	}
	for _, action := range []string{credentials.ActionGet, credentials.ActionStore, credentials.ActionErase, credentials.ActionList, credentials.ActionVersion} {
		root.AddCommand(p.protocol(action))
	}
	root.AddCommand(p.loginCommand(), p.logoutCommand(), p.statusCommand(), p.switchCommand(), p.holdCommand(), p.configureCommand(), p.doctorCommand())
	root.Version = p.Version
	return root
}

// help is what a command does that has only others below it. An unknown one below it is an error.
func help(c *cobra.Command, _ []string) error { return c.Help() }

// protocol is a command that docker types.
func (p *Program) protocol(action string) *cobra.Command {
	return &cobra.Command{
		Use: action, Short: "for docker: " + action, Hidden: action != credentials.ActionVersion, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			credentials.Name, credentials.Package, credentials.Version = "docker-credential-atcr", "atcr.io", p.Version
			h, err := p.helper()
			if err == nil {
				err = credentials.HandleCommand(h, action, p.Stdin, p.Stdout)
			}
			if err != nil {
				sayTo(p.Stdout, "%s\n", err)
				return errProtocol
			}
			return nil
		},
	}
}

func (p *Program) loginCommand() *cobra.Command {
	var o loginOptions
	var noBrowser, noQR, asJSON, onlyFile bool
	c := &cobra.Command{
		Use: "login [REGISTRY]", Short: "sign in to a registry in your browser", Args: cobra.MaximumNArgs(1), ValidArgsFunction: p.completeRegistry,
		RunE: func(c *cobra.Command, args []string) error {
			h, registry, err := p.helperFor(args)
			if err != nil {
				return err
			}
			h.OnlyFile = h.OnlyFile || onlyFile
			out := p.Stdout
			if asJSON {
				out = p.Stderr
			}
			o.Terminal = isTerminal(out)
			o.QR = o.Terminal && !noQR
			if !noBrowser && o.Terminal {
				browser.Stdout, browser.Stderr = io.Discard, io.Discard
				o.Browser = browser.OpenURL
			}
			a, err := h.login(c.Context(), registry, o, out)
			if err != nil {
				return err
			}
			if asJSON {
				return p.printJSON(a)
			}
			p.print("Signed in to %s as %s (%s).", a.Registry, a.username(), a.DID)
			if path, err := dockerConfigPath(); err == nil {
				if raw, err := os.ReadFile(path); err != nil || !contains(helperRegistries(raw), registry) {
					p.print("Docker and others do not use it yet. Type: docker-credential-atcr configure-docker")
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&o.Name, "name", machineName(), "what this machine is called in your settings")
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "open no browser here")
	c.Flags().BoolVar(&noQR, "no-qr", false, "draw no QR code")
	c.Flags().BoolVar(&onlyFile, "file", false, "keep the secret in a file though there is a keychain")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}

// helperFor is the helper and the registry that args name, or the only one that somebody is signed in to.
func (p *Program) helperFor(args []string) (*Helper, string, error) {
	h, err := p.helper()
	if err != nil {
		return nil, "", err
	}
	if len(args) > 0 {
		registry, err := parseRegistry(args[0])
		return h, registry, err
	}
	s, err := h.load()
	if err != nil {
		return nil, "", err
	}
	if known := s.registries(); len(known) == 1 {
		return h, known[0], nil
	} else if len(known) > 1 {
		return nil, "", fmt.Errorf("name the registry: one of %s", strings.Join(known, ", "))
	}
	return nil, "", errors.New("name the registry, like atcr.example")
}

// host is a name or an address, with a port or without.
var host = regexp.MustCompile(`^([a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)

// parseRegistry is the host that somebody typed, as clients write it.
func parseRegistry(text string) (string, error) {
	registry, _ := splitServer(text)
	if !host.MatchString(registry) {
		return "", fmt.Errorf("%q is not the host of a registry", text)
	}
	return registry, nil
}

func (p *Program) completeRegistry(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	h, err := p.helper()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	s, err := h.load()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return s.registries(), cobra.ShellCompDirectiveNoFileComp
}

func (p *Program) print(format string, args ...any) {
	sayTo(p.Stdout, format+"\n", args...)
}

func (p *Program) printJSON(value any) error {
	e := json.NewEncoder(p.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func contains(list []string, one string) bool {
	for _, s := range list {
		if s == one {
			return true
		}
	}
	return false
}

// ask asks a person for a yes. Errors: that of ctx, where they type Ctrl-C instead.
func (p *Program) ask(ctx context.Context, question string) (bool, error) {
	_, _ = fmt.Fprint(p.Stdout, question+" [y/N] ")
	typed := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(p.Stdin).ReadString('\n') // what is not typed is no
		typed <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		p.print("")
		return false, ctx.Err()
	case answer := <-typed:
		return answer == "y" || answer == "yes", nil
	}
}

func (p *Program) configureCommand() *cobra.Command {
	var undo, yes bool
	c := &cobra.Command{
		Use: "configure-docker [REGISTRY…]", Short: "let docker and others use this program for your registries", ValidArgsFunction: p.completeRegistry,
		Long: `configure-docker writes this program into credHelpers of docker's config.json ($DOCKER_CONFIG, else ~/.docker), for the
registries that it is given, or all that you are signed in to. It shows the change, asks, and changes nothing else.
--undo takes it out again.`,
		RunE: func(c *cobra.Command, args []string) error {
			var registries []string
			for _, arg := range args {
				registry, err := parseRegistry(arg)
				if err != nil {
					return err
				}
				registries = append(registries, registry)
			}
			if len(registries) == 0 && !undo {
				h, err := p.helper()
				if err != nil {
					return err
				}
				s, err := h.load()
				if err != nil {
					return err
				}
				if registries = s.registries(); len(registries) == 0 {
					return errors.New("nobody is signed in: name the registries, or sign in first")
				}
			}
			path, err := dockerConfigPath()
			if err != nil {
				return err
			}
			change, err := planConfig(path, registries, undo)
			if err != nil {
				return err
			}
			if change.none() {
				p.print("%s needs no change.", change.path)
				return nil
			}
			p.print("%s:\n%s", change.path, change.diff())
			if !yes {
				agreed, err := p.ask(c.Context(), "Change it?")
				if err != nil || !agreed {
					p.print("Nothing was changed.")
					return err
				}
			}
			if err := change.apply(); err != nil {
				return err
			}
			p.print("Changed.")
			return nil
		},
	}
	c.Flags().BoolVar(&undo, "undo", false, "take this program out of the file again")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

func (p *Program) doctorCommand() *cobra.Command {
	var plc, handles string
	var asJSON bool
	c := &cobra.Command{
		Use: "doctor IMAGE", Short: "find out why an image cannot be pulled, and who can mend it", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := p.helper()
			if err != nil {
				return err
			}
			encoder := json.NewEncoder(p.Stdout)
			d, err := h.newDoctor(args[0], plc, handles, func(f finding) {
				switch {
				case asJSON:
					_ = encoder.Encode(f) // nobody reads it: nobody to tell
				case f.OK:
					p.print("ok    %-16s %s", f.Link, f.Found)
				default:
					p.print("FAIL  %-16s %s\n      whose it is: %s", f.Link, f.Found, f.Whose)
				}
			})
			if err != nil {
				return err
			}
			return d.run(c.Context())
		},
	}
	c.Flags().StringVar(&plc, "plc", "https://plc.directory", "directory of did:plc")
	c.Flags().StringVar(&handles, "handles", "", "a server that is asked first what DID a handle has; else DNS and the handle's host")
	c.Flags().BoolVar(&asJSON, "json", false, "print lines of JSON")
	return c
}
