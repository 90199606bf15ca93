package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/rollout/selfplay"
)

// playedName is the file of the scripted episodes that an unfinished warm start has
// played: JSON lines, the first of which says by what settings.
const playedName = "played.jsonl"

// playedLog is that file. It is made with the first episode.
type playedLog struct {
	path     string
	settings []byte // the first line
	size     int64  // of what is whole
	episodes map[string]selfplay.WarmEpisode
	file     *os.File // nil until there is something to write
}

// openPlayed reads what an interrupted warm start into the same folder has left, and
// refuses it where other episodes would come of this one.
func (c *warmstartCmd) openPlayed(repo *selfplay.Repo) (*playedLog, error) {
	digest, err := digestOf(repo)
	if err != nil {
		return nil, err
	}
	recipe, err := readRecipe(c.Recipe)
	if err != nil {
		return nil, err
	}
	settings, err := json.Marshal(map[string]any{
		"repository": digest, "recipe": recipe, "seed": c.Seed, "strategy": c.Strategy, "careful": c.Careful, "slip": c.Slip, "shy": c.Shy,
		"targets": c.Targets, "turns": c.Turns, "prompts": c.Prompts, "requirements": c.requirements(), "sandbox": c.sandboxFlags.config(),
	})
	if err != nil {
		return nil, err
	}
	p := &playedLog{path: filepath.Join(c.Out, playedName), settings: append(settings, '\n'), episodes: map[string]selfplay.WarmEpisode{}}
	data, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(data) {
		var e selfplay.WarmEpisode
		switch {
		case !bytes.HasSuffix(line, []byte("\n")): // cut off while it was written
			return p, nil
		case p.size == 0 && !bytes.Equal(line, p.settings):
			return nil, fmt.Errorf("%s holds episodes that were played by other settings, %s, and these are %s: give those, or choose another folder",
				p.path, bytes.TrimSpace(line), settings)
		case p.size > 0:
			if err := json.Unmarshal(line, &e); err != nil || e.Trajectory == nil {
				return nil, fmt.Errorf("%s: byte %d: not an episode (%v); remove the file to play all anew", p.path, p.size, err)
			}
			p.episodes[e.Trajectory.ID] = e
		}
		p.size += int64(len(line))
	}
	return p, nil
}

// digestOf tells snapshots of repositories apart.
func digestOf(repo *selfplay.Repo) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", repo.Head())
	for _, name := range repo.Files() {
		data, err := repo.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %d\n", name, len(data))
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// keep makes an episode durable.
func (p *playedLog) keep(e selfplay.WarmEpisode) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if p.file == nil {
		if err := p.create(); err != nil {
			return err
		}
	}
	if _, err := p.file.WriteAt(line, p.size); err != nil {
		return err
	}
	p.size += int64(len(line))
	return p.file.Sync()
}

// create opens the file, without what was cut off and with its first line.
func (p *playedLog) create() (err error) {
	dir := filepath.Dir(p.path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if p.file, err = os.OpenFile(p.path, os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	if err := p.file.Truncate(p.size); err != nil {
		return err
	}
	if p.size == 0 {
		if _, err := p.file.WriteAt(p.settings, 0); err != nil {
			return err
		}
		p.size = int64(len(p.settings))
	}
	return atomicfile.SyncDir(dir)
}

// remove forgets the episodes: what came of them is elsewhere, or nothing did.
func (p *playedLog) remove() error { return os.Remove(p.path) }

func (p *playedLog) Close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}
