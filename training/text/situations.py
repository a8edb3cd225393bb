"""The listener's world: what users tell about, with the feeling that goes with it and what one asks or advises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """One thing that happens to people.

    `told` are the user's wordings, `clause` the same in the second person, `topic` a noun phrase for "about ...",
    `question` what a listener asks, `advice` what would help.
    """

    emotion: str
    told: tuple[str, ...]
    clause: str
    topic: str
    question: str
    advice: str

    @property
    def third_person(self) -> str:
        """Return the clause as a note about the user: `your dog is sick` becomes `their dog is sick`."""
        words = [{"you": "they", "your": "their"}.get(word, word) for word in self.clause.split()]
        if words[-1] == "they":  # at the end it is an object
            words[-1] = "them"
        return " ".join(words)


# emotion: wordings of the user, separated by `|`; clause; topic; question; advice
_TABLE: dict[str, tuple[tuple[str, str, str, str, str], ...]] = {
    "sad": (
        ("my grandmother passed away|my grandmother died last week", "your grandmother passed away",
         "your grandmother", "What do you remember most about her?", "Maybe you can look at old pictures of her."),
        ("I failed my exam|I did not pass the exam", "you failed your exam",
         "the exam", "Can you take it again?", "One exam does not say who you are."),
        ("my team lost the last game|we lost the last game of the season", "your team lost the game",
         "the game", "How is the rest of the team?", "There will be another game."),
        ("my son does not talk to me|my son will not talk to me anymore", "your son does not talk to you",
         "your son", "When did you last talk to him?", "Maybe you can write him a letter."),
        ("my old dog died|we had to say goodbye to our dog", "your dog died",
         "your dog", "What was your dog like?", "You gave your dog a good life."),
        ("my boyfriend left me|my girlfriend left me", "you lost someone you love",
         "the one you lost", "How long were you together?", "Stay close to your friends this week."),
    ),
    "lonely": (
        ("my best friend moved away|my best friend moved to another country", "your best friend moved away",
         "your friend", "When can you visit your friend?", "You could call your friend tonight."),
        ("I feel alone in this city|I know nobody in this city", "you feel alone in this city",
         "this city", "What do you like to do on weekends?", "A club is a good place to meet people."),
        ("nobody came to my party|no one came to my birthday party", "nobody came to your party",
         "the party", "Who did you want to see most?", "You could ask one friend to come for dinner."),
        ("I miss my old school|I miss the people at my old school", "you miss your old school",
         "your old school", "Who do you miss the most?", "You could write to someone from there."),
        ("I eat lunch alone every day|nobody sits with me at lunch", "you eat lunch alone every day",
         "lunch", "Is there someone you would like to sit with?", "You could ask one person to join you."),
        ("my children have all moved out|the house is empty since my children left", "your children moved out",
         "the empty house", "How often do you call them?", "You could plan a family dinner."),
    ),
    "worried": (
        ("my dog is very sick|my dog will not eat", "your dog is sick",
         "your dog", "What does the doctor say?", "Stay close to your dog tonight."),
        ("my cat ran away last night|I can not find my cat", "your cat ran away",
         "your cat", "Where did you last see your cat?", "You could ask the people next door."),
        ("I do not have enough money for rent|I can not pay my rent this month", "you can not pay your rent",
         "money", "Can someone help you this month?", "You could talk to someone about a plan."),
        ("I may lose my job|they are closing my office", "you may lose your job",
         "your job", "When will you know more?", "You could start to look for something new."),
        ("my daughter is not home yet|my daughter does not answer her phone", "your daughter is not home yet",
         "your daughter", "When did she say she would be home?", "You could call one of her friends."),
        ("my father forgets so many things|my father forgot my name today", "your father forgets many things",
         "your father", "When did you first see this?", "You could go to the doctor with him."),
    ),
    "nervous": (
        ("I have a big test tomorrow|there is a big test tomorrow morning", "you have a big test tomorrow",
         "the test", "What part of the test is hard?", "Try to sleep well tonight."),
        ("I am moving to a new house|we are moving next week", "you are moving to a new house",
         "the new house", "What will you miss?", "You could start with one small box."),
        ("I have to speak in front of everyone|I have to give a speech at work", "you have to give a speech",
         "your speech", "What will you talk about?", "You could practice with a friend."),
        ("I have my first date on Friday|I am going on a date for the first time in years", "you have a date",
         "the date", "What do you like about this person?", "Just be yourself and listen."),
        ("I have a job interview today|they asked me to come for an interview", "you have a job interview",
         "the interview", "What is the job?", "Take a deep breath before you go in."),
        ("I start at a new school on Monday|Monday is my first day at a new school", "you start at a new school",
         "the new school", "Do you know someone there?", "You could say hello to one person."),
    ),
    "scared": (
        ("my brother is in the hospital|they took my brother to the hospital", "your brother is in the hospital",
         "your brother", "Can you visit him?", "Ask the doctor all of your questions."),
        ("I am waiting for the doctor to call|the doctor will call me with the results",
         "you are waiting for the doctor", "the results", "Is someone with you now?", "Try not to wait alone."),
        ("there was a loud noise in my house|someone is at my door at night", "you heard a noise in your house",
         "the noise", "Are you safe right now?", "Turn on the light and call someone."),
        ("I had a car accident|I almost hit another car", "you had a car accident",
         "the accident", "Are you hurt?", "You do not have to drive today."),
        ("I have to have an operation|they have to operate on my knee", "you have to have an operation",
         "the operation", "What did the doctor tell you?", "You can ask someone to go with you."),
        ("I had a terrible dream|I have the same bad dream every night", "you had a terrible dream",
         "the dream", "What did you see in the dream?", "A warm light can help at night."),
    ),
    "angry": (
        ("I had a fight with my sister|my sister and I had a fight", "you had a fight with your sister",
         "your sister", "What was the fight about?", "Give it one night, then talk to her."),
        ("my boss yelled at me today|my boss shouted at me in front of everyone", "your boss yelled at you",
         "your boss", "What did you say to your boss?", "You could ask your boss for a quiet talk."),
        ("my neighbor is always so loud|my neighbor plays loud music at night", "your neighbor is always loud",
         "your neighbor", "Did you talk about it with your neighbor?", "You could write a kind note."),
        ("someone stole my bike|my bike is gone, someone took it", "someone stole your bike",
         "your bike", "Where did it happen?", "You could tell the police about it."),
        ("my flight was late again|they canceled my flight again", "your flight was late again",
         "the flight", "Where did you want to go?", "You could ask for your money back."),
        ("my brother lied to me|my brother did not tell me the truth", "your brother lied to you",
         "your brother", "How did you find out?", "Tell him how it feels."),
    ),
    "tired": (
        ("I can not sleep at night|I lie awake every night", "you can not sleep at night",
         "your sleep", "What do you think about at night?", "Put your phone away before bed."),
        ("I have too much work this week|there is too much work and no end", "you have too much work",
         "your work", "What can wait until next week?", "You could do one thing at a time."),
        ("I have been working all night|I worked until five in the morning", "you have been working all night",
         "your work", "When can you rest?", "Go to bed early tonight."),
        ("my baby cries all night|the baby wakes me up every hour", "your baby cries all night",
         "the baby", "Who can help you with the baby?", "Sleep when the baby sleeps."),
        ("I take care of my mother every day|my mother needs me day and night", "you take care of your mother",
         "your mother", "Who takes care of you?", "You could ask for help one day a week."),
        ("I drive two hours to work every day|the way to work takes me two hours", "you drive two hours to work",
         "the long drive", "Can you work from home sometimes?", "Good music makes the drive shorter."),
    ),
    "sorry": (
        ("I forgot my father's birthday|I did not call my father on his birthday", "you forgot your father's birthday",
         "your father", "What could you do for him now?", "You could call him today."),
        ("I said something mean to my friend|I hurt my friend with my words", "you said something mean to your friend",
         "your friend", "What would you like to say now?", "A simple sorry can open the door."),
        ("I made a big mistake at work|I broke something important at work", "you made a mistake at work",
         "the mistake", "Who knows about it?", "Tell them early, it gets easier."),
        ("I lied to my wife|I lied to my husband", "you told a lie at home",
         "the lie", "What are you afraid of?", "The truth is hard only once."),
        ("I missed my daughter's concert|I was not there when my daughter played", "you missed the concert",
         "the concert", "What did your daughter say?", "You could ask her to play for you."),
        ("I yelled at my children|I lost my temper with my kids", "you yelled at your children",
         "your children", "What happened before that?", "You could tell them that you are sorry."),
    ),
    "confused": (
        ("I do not know what to study|I can not decide what to study", "you do not know what to study",
         "your studies", "What do you enjoy most?", "You could visit a class first."),
        ("my friend stopped writing to me|my friend does not write back", "your friend stopped writing to you",
         "your friend", "When did you last hear something?", "You could just ask how your friend is."),
        ("I have two job offers|I have to choose between two jobs", "you have to choose between two jobs",
         "the two jobs", "Which one makes you smile?", "You could write down what matters to you."),
        ("I do not know if I love him|I do not know if I love her", "you do not know if it is love",
         "love", "How do you feel when you are together?", "You do not have to know today."),
        ("I do not know where I belong|I feel like I do not fit in", "you do not know where you belong",
         "your place", "Where do you feel at home?", "Look for people who like what you like."),
        ("the letter from the bank makes no sense|I do not understand this letter from my bank",
         "you got a strange letter", "the letter", "What does the letter ask for?", "Call them and ask slowly."),
    ),
    "happy": (
        ("I got a new job|they gave me the job", "you got a new job",
         "your new job", "When do you start?", "Take a moment to enjoy it."),
        ("my mother is coming to visit|my mother will stay with us next week", "your mother is coming to visit",
         "your mother", "What will you do together?", "You could cook something she loves."),
        ("I passed the driving test|I can finally drive a car", "you passed the driving test",
         "the driving test", "Where will you drive first?", "Drive safe and have fun."),
        ("I have a new baby at home|our baby was born on Sunday", "you have a new baby",
         "the baby", "What is the name of the baby?", "Enjoy these first days."),
        ("I am in love|I met someone wonderful", "you are in love",
         "love", "How did you meet?", "Enjoy it, one day at a time."),
        ("we are going to the sea tomorrow|tomorrow we go on a long vacation", "you are going on a vacation",
         "the vacation", "What will you do first?", "Leave your work at home."),
    ),
    "proud": (
        ("I won the race on Sunday|I came in first in the race", "you won the race",
         "the race", "How long did you train?", "Give your legs a rest now."),
        ("I finished my first book|I wrote the last page of my book", "you finished your book",
         "your book", "What is the book about?", "You could read a page to a friend."),
        ("my daughter started school today|today was my daughter's first day of school", "your daughter started school",
         "your daughter", "What did she tell you?", "Keep a picture of this day."),
        ("I learned to play the piano|I can play a whole song on the piano", "you learned to play the piano",
         "the piano", "What song do you like to play?", "You could play for your family."),
        ("I have not smoked for a month|I stopped smoking", "you stopped smoking",
         "this month", "What helped you the most?", "Do something nice with the money."),
        ("I ran five miles today|I ran five miles without a break", "you ran five miles",
         "your run", "How did you feel at the end?", "Drink some water and rest."),
    ),
    "thankful": (
        ("a stranger helped me today|a stranger paid for my coffee", "a stranger helped you",
         "the stranger", "What did you say?", "You can do the same for someone."),
        ("my friends made a party for me|my friends came with a cake", "your friends made a party for you",
         "your friends", "What was the best moment?", "You could send them a picture."),
        ("the doctor says I am healthy again|I am finally healthy again", "you are healthy again",
         "your health", "What will you do first?", "Go slowly and enjoy the fresh air."),
        ("my teacher believed in me|my teacher never gave up on me", "your teacher believed in you",
         "your teacher", "What did you learn from your teacher?", "You could tell your teacher."),
        ("my brother fixed my car|my brother helped me all weekend", "your brother helped you",
         "your brother", "How can you thank him?", "A small gift says a lot."),
        ("my neighbor cooked for me when I was sick|my neighbor brought me soup", "your neighbor took care of you",
         "your neighbor", "Was the food good?", "You could bring something back."),
    ),
}  # fmt: skip

SITUATIONS: tuple[Situation, ...] = tuple(
    Situation(emotion, tuple(told.split("|")), clause, topic, question, advice)
    for emotion, rows in _TABLE.items()
    for told, clause, topic, question, advice in rows
)
