package credhelper

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

func (p *Program) logoutCommand() *cobra.Command {
	var who string
	var all bool
	c := &cobra.Command{
		Use: "logout [REGISTRY]", Short: "sign out, and revoke this machine at the registry", Args: cobra.MaximumNArgs(1), ValidArgsFunction: p.completeRegistry,
		RunE: func(c *cobra.Command, args []string) error {
			h, registry, err := p.helperFor(args)
			if err != nil {
				return err
			}
			s, err := h.load()
			if err != nil {
				return err
			}
			accounts := s.of(registry)
			if len(accounts) == 0 {
				return fmt.Errorf("nobody is signed in to %s", registry)
			}
			if who != "" {
				accounts = slices.DeleteFunc(accounts, func(a Account) bool { return !a.is(who) })
				if len(accounts) == 0 {
					return fmt.Errorf("%s is not signed in to %s", who, registry)
				}
			}
			if !all {
				accounts = accounts[:1]
			}
			for _, a := range accounts {
				revoked, err := h.signOut(c.Context(), a)
				if err != nil {
					return err
				}
				p.print("Signed out of %s as %s.", a.Registry, a.username())
				if a.Kind == kindDevice && !revoked {
					p.print("%s could not be told: revoke this machine at %s/settings", a.Registry, baseURL(a.Registry))
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&who, "account", "", "handle or DID, where several are signed in")
	c.Flags().BoolVar(&all, "all", false, "everybody who is signed in to the registry")
	return c
}

// accountStatus is a line of `status`.
type accountStatus struct {
	Account
	Current bool `json:"current"`
	// Valid: yes, no (the registry refuses it), or unknown (the registry, or the keychain, did not answer).
	Valid string `json:"valid"`
	Note  string `json:"note,omitempty"`
}

func (p *Program) statusCommand() *cobra.Command {
	var asJSON, offline bool
	c := &cobra.Command{
		Use: "status", Short: "who is signed in where, since when, and whether it is still good", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := p.helper()
			if err != nil {
				return err
			}
			s, err := h.load()
			if err != nil {
				return err
			}
			all := []accountStatus{}
			for _, registry := range s.registries() {
				for _, a := range s.of(registry) {
					all = append(all, h.status(c.Context(), s, a, offline))
				}
			}
			if asJSON {
				return p.printJSON(all)
			}
			if len(all) == 0 {
				p.print("Nobody is signed in. To sign in, type: docker-credential-atcr login REGISTRY")
			}
			for _, st := range all {
				mark := " "
				if st.Current {
					mark = "*"
				}
				p.print("%s %s  %s  since %s  %s  secret in the %s", mark, st.Registry, st.username(), st.Since.Local().Format("2006-01-02"), st.said(), st.Store)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&offline, "offline", false, "do not ask the registries")
	return c
}

func (st accountStatus) said() string {
	text := map[string]string{"yes": "valid", "no": "NOT VALID", "unknown": "not checked"}[st.Valid]
	if st.Note != "" {
		text += " (" + st.Note + ")"
	}
	return text
}

func (h *Helper) status(ctx context.Context, s *state, a Account, offline bool) accountStatus {
	st := accountStatus{Account: a, Current: s.Current[a.Registry] == a.key(), Valid: "unknown"}
	secret, err := h.secret(a)
	switch {
	case err != nil:
		st.Note = err.Error()
		if errors.Is(err, errNoSecret) {
			st.Valid = "no"
		}
		return st
	case offline:
		return st
	case a.appPassword(secret):
		st.Note = "an app password, which only a push or pull tries"
		return st
	}
	w, err := h.whoAmI(ctx, a.Registry, secret)
	switch {
	case errors.Is(err, errSignedOut):
		st.Valid, st.Note = "no", "sign in again: docker-credential-atcr login "+a.Registry
	case err != nil:
		st.Note = err.Error()
	case !w.SignedIn:
		st.Valid, st.Note = "no", "your sign-in at your PDS has ended: sign in at "+baseURL(a.Registry)+"/settings"
	default:
		st.Valid = "yes"
	}
	return st
}

func (p *Program) switchCommand() *cobra.Command {
	var registry string
	c := &cobra.Command{
		Use: "switch ACCOUNT", Short: "use another account where nothing says which", Args: cobra.ExactArgs(1),
		Long: `switch chooses the account of a registry that is used where nothing says which. Where a client reveals whose
image it is, the account of that name is used in any case.`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if h, err := p.helper(); err == nil {
				if s, err := h.load(); err == nil {
					for _, a := range s.Accounts {
						names = append(names, a.username())
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			h, err := p.helper()
			if err != nil {
				return err
			}
			return h.change(func(s *state) error {
				var found []Account
				for _, a := range s.Accounts {
					if a.is(args[0]) && (registry == "" || a.Registry == registry) {
						found = append(found, a)
					}
				}
				switch len(found) {
				case 0:
					return fmt.Errorf("%s is not signed in here", args[0])
				case 1:
					s.Current[found[0].Registry] = found[0].key()
					p.print("%s is used at %s now.", found[0].username(), found[0].Registry)
					return nil
				}
				return fmt.Errorf("%s is signed in to several registries: say which by --registry", args[0])
			})
		},
	}
	c.Flags().StringVar(&registry, "registry", "", "where the account is signed in to several")
	return c
}

func (p *Program) holdCommand() *cobra.Command {
	var registry, who string
	var asJSON bool
	c := &cobra.Command{Use: "hold", Short: "where your images are stored", Args: cobra.NoArgs, RunE: help}
	c.PersistentFlags().StringVar(&registry, "registry", "", "the registry, where you are signed in to several")
	c.PersistentFlags().StringVar(&who, "account", "", "handle or DID, where several are signed in")
	c.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	act := func(f func(ctx context.Context, h *Helper, registry, secret string) ([]holdReport, error)) func(*cobra.Command) error {
		return func(c *cobra.Command) error {
			var args []string
			if registry != "" {
				args = []string{registry}
			}
			h, at, err := p.helperFor(args)
			if err != nil {
				return err
			}
			s, err := h.load()
			if err != nil {
				return err
			}
			a, ok := s.pick(at, who)
			if !ok || who != "" && !a.is(who) {
				return fmt.Errorf("nobody of that name is signed in to %s: docker-credential-atcr login %s", at, at)
			}
			secret, err := h.secret(a)
			if err != nil {
				return err
			}
			if a.appPassword(secret) {
				return fmt.Errorf("%s is signed in with an app password, which is for pushes and pulls alone; to sign in this machine, type: docker-credential-atcr login %s", a.username(), at)
			}
			reports, err := f(c.Context(), h, at, secret)
			switch {
			case errors.Is(err, errSignedOut):
				return fmt.Errorf("%w; to sign in again, type: docker-credential-atcr login %s", err, at)
			case err != nil:
				return err
			case asJSON:
				return p.printJSON(reports)
			}
			for _, report := range reports {
				p.printHold(a, report)
			}
			return nil
		}
	}
	c.AddCommand(&cobra.Command{
		Use: "show", Short: "show the hold that your pushes go to", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return act(func(ctx context.Context, h *Helper, registry, secret string) ([]holdReport, error) {
				report, err := h.hold(ctx, registry, secret)
				return []holdReport{report}, err
			})(c)
		},
	}, &cobra.Command{
		Use: "list", Short: "list the holds where you may write, as far as the registry knows", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return act(func(ctx context.Context, h *Helper, registry, secret string) ([]holdReport, error) {
				return h.knownHolds(ctx, registry, secret)
			})(c)
		},
	}, &cobra.Command{
		Use: "use HOLD", Short: "choose another: its DID or URL, or `default`", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			hold := args[0]
			if hold == "default" {
				hold = ""
			}
			return act(func(ctx context.Context, h *Helper, registry, secret string) ([]holdReport, error) {
				report, err := h.useHold(ctx, registry, secret, hold)
				return []holdReport{report}, err
			})(c)
		},
	})
	return c
}

func (p *Program) printHold(a Account, r holdReport) {
	why := "your choice"
	if r.Default {
		why = "the default of " + a.Registry
	}
	if r.Chosen {
		p.print("Pushes of %s go to %s (%s).", a.username(), r.DID, why)
	} else {
		p.print("%s", r.DID)
	}
	if r.URL != "" {
		p.print("  address      %s", r.URL)
	}
	if r.Role != "" {
		p.print("  you are      %s", r.Role)
	}
	p.print("  may write    %s", yesNo(r.MayWrite))
	p.print("  others read  %s", yesNo(r.OthersRead))
	if r.Problem != "" {
		p.print("  problem      %s", r.Problem)
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
