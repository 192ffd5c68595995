#!/bin/sh
# needs: git
# Hooks in one repository, as tools for it keep them; files for shells in a repository of such.
export HOME=/tmp/h; mkdir -p $HOME && cd /tmp && git init -q r && cd r
for hook in pre-commit commit-msg pre-push post-checkout post-merge; do printf '#!/bin/sh\nexit 0\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook; done
mkdir dotfiles && for f in .vimrc .bashrc .profile .zshrc; do echo '# x' > dotfiles/$f; done
git add -A && git -c user.name=a -c user.email=a@b commit -q -m x
mkdir -p /tmp/dest/usr/bin && for p in sudo ssh passwd; do printf '#!/bin/sh\n' > /tmp/dest/usr/bin/$p; done
git clone -q /tmp/r /tmp/r2; git clone -q /tmp/r /tmp/r3; git clone -q /tmp/r /tmp/r4
