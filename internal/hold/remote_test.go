package hold

import (
	"strings"
	"testing"

	"atcr.io/internal/devnet"
)

// Would catch crew commands that do not work from elsewhere, that a stranger can give, or that send an app
// password to anybody but the PDS of who signs in.
func TestRemoteCrew(t *testing.T) {
	t.Parallel()
	n, err := devnet.Start(t.Context(), devnet.Config{Accounts: []string{"owner.test", "other.test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	s := startHold(t, &people{url: n.PLCURL}, func(c *Config) { c.Owner, c.TestMode = n.Accounts[0].DID, true })
	as := func(i int, password string) Remote {
		return Remote{Hold: s.config.PublicURL, Handle: n.Accounts[i].DID, Password: password, PLCURL: n.PLCURL, TestMode: true}
	}
	me := as(0, n.Accounts[0].AppPassword)
	byDID := me
	byDID.Hold = s.did.String()
	const member = "did:plc:member"
	for _, step := range []struct {
		as         Remote
		name       string
		parameters map[string]string
		want       string
		fails      bool
	}{
		{me, "crew set", map[string]string{"member": member, "permissions": "blob:read"}, member + "  blob:read", false},
		{byDID, "crew set", map[string]string{"member": member, "permissions": "blob:write"}, member + "  blob:write", false},
		{me, "crew set", map[string]string{"member": member, "permissions": "blob:write", "tier": "pro"}, "tier pro", false},
		{me, "crew set", map[string]string{"member": member, "permissions": "blob:write"}, "tier pro", false},
		{me, "crew set", map[string]string{"member": member, "permissions": "blob:write", "tier": ""}, member + "  blob:write\n", false},
		{Remote{Hold: s.config.PublicURL, PLCURL: n.PLCURL, TestMode: true}, "crew list", nil, member + "  blob:write\n", false},
		{me, "crew set", map[string]string{"member": member, "tier": "pro"}, member + "  blob:write  tier pro", false},
		{me, "crew set", map[string]string{"member": "alice", "permissions": "blob:read"}, "is not a DID", true},
		{me, "crew set", map[string]string{"member": member, "permissions": "blob:wirte"}, "no permission", true},
		{as(0, "wrong"), "crew remove", map[string]string{"member": member}, "sign in", true},
		{as(0, ""), "crew remove", map[string]string{"member": member}, "APP_PASSWORD", true},
		{as(1, n.Accounts[1].AppPassword), "crew remove", map[string]string{"member": member}, "Forbidden", true},
		{Remote{Hold: n.PDSURL, PLCURL: n.PLCURL, TestMode: true}, "crew list", nil, "--hold", true},
		{me, "crew remove", map[string]string{"member": member}, "no member any more", false},
		{me, "crew remove", map[string]string{"member": member}, "is no member", true},
	} {
		said := ""
		err := step.as.Crew(t.Context(), step.name, step.parameters, func(l Line) { said += l.Text + "\n" })
		if err != nil {
			said += err.Error()
		}
		if (err != nil) != step.fails || !strings.Contains(said, step.want) {
			t.Errorf("%s %v: %s", step.name, step.parameters, said)
		}
	}
	if policy, err := s.roster.policy(t.Context()); err != nil || len(policy.Members) != 1 {
		t.Errorf("%v %v", policy.Members, err)
	}
}
